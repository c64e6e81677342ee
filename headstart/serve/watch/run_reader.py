"""A run, read from its folder while it goes on and afterwards: nothing here is told by the training's process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from headstart.data.finding import Finding
from headstart.errors import RunError
from headstart.files import path_of, read_rows, unicode_text
from headstart.runs.log import LOG_FILE, read_log
from headstart.runs.status import is_under_way, read_now

SHOWN_MISTAKES = 24

CHECKED = 4096
"""Bytes before a place in the log by which it is known again."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A place in a log.

    Attributes:
        offset: bytes before it.
        check: CRC-32 of the last of them; None where it is not known.
    """

    offset: int = 0
    check: int | None = None

    def __str__(self) -> str:
        return str(self.offset) if self.check is None else f"{self.offset}-{self.check:08x}"

    @classmethod
    def read(cls, text: str) -> Place:
        """Back from ``str``; the beginning where it is none."""
        found = re.fullmatch(r"(\d{1,15})(?:-([0-9a-f]{8}))?", text.strip())
        if found is None:
            return cls()
        return cls(int(found[1]), int(found[2], 16) if found[2] else None)


@dataclass(frozen=True)
class Tail:
    """What stands behind a place in a log.

    Attributes:
        anew: the log is another by now (a run that went on has cut it): what was told before does not count.
        lines: whole lines, each with the place behind it.
    """

    anew: bool
    lines: tuple[tuple[Place, bytes], ...]


def read_tail(log: Path, after: Place) -> Tail:
    """What was written behind a place; no lines of a log that is not there."""
    try:
        with open(log, "rb") as file:
            begin = max(0, after.offset - CHECKED)
            file.seek(begin)
            data = file.read()
    except OSError:
        return Tail(after.offset > 0, ())
    known, fresh = data[: after.offset - begin], data[after.offset - begin :]
    same = len(known) == after.offset - begin and (not known or known.endswith(b"\n"))
    if not same or (after.check is not None and zlib.crc32(known) != after.check):
        return Tail(True, read_tail(log, Place()).lines)
    lines, seen = [], known
    for line in fresh.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        after = Place(after.offset + len(line), 0)
        seen = (seen + line)[-CHECKED:] if len(line) < CHECKED else line[-CHECKED:]
        lines.append((Place(after.offset, zlib.crc32(seen)), line))
    return Tail(False, tuple(lines))


@final
class Watched:
    """A run's folder.

    Args:
        folder: of the run; it may not be there yet.
        served: whether its model is served beside it.
        expected: whether a training that is about to begin is still alive; None where none is expected.
    """

    def __init__(self, folder: Path, *, served: bool = False, expected: Callable[[], bool] | None = None) -> None:
        self.folder, self.served, self._expected = folder, served, expected
        self.log = folder / LOG_FILE
        self._pictures: dict[str, str] = {}
        self._seen = False

    def state(self) -> Figures:
        """What it is, as a page shows it; a JSON document."""
        quoted = shlex.quote(unicode_text(str(self.folder)))
        return {
            "name": unicode_text(self.folder.resolve().name),
            "folder": unicode_text(str(self.folder)),
            "state": self._word(),
            "pictures": self.served,
            "resume": f"headstart train --resume {quoted} --watch",
            "again": f"headstart {'serve' if self.served else 'watch'} {quoted}",
        }

    def now(self) -> Figures | None:
        """See ``runs.status.read_now``."""
        return read_now(self.folder)

    def tail(self, after: Place) -> Tail:
        """See ``read_tail``; what a page shows of mistakes has the addresses of their pictures beside it."""
        tail = read_tail(self.log, after)
        return Tail(tail.anew, tuple((place, self._dressed(line)) for place, line in tail.lines))

    def summary(self) -> Figures:
        """What a finished run has come to; a JSON document.

        Raises:
            RunError: it has not finished, or is damaged.
        """
        try:
            document = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            left_out = ("classes", "confusion")
            scores = {n: {k: v for k, v in s.items() if k not in left_out} for n, s in document["scores"].items()}
            base = Path(document["data"]["base"])
            found = [self._shown(Finding.from_json(own).brief(base)) for own in document["findings"]]
            return {
                "scores": scores,
                "best": document["best"],
                "seconds": sum(document["seconds"].values()),
                "model": str(self.folder / "model.safetensors"),
                "report": (self.folder / "report.html").is_file(),
                "findings": found,
                "mistakes": self._mistakes(),
            }
        except FileNotFoundError as error:
            raise RunError(f"{self.folder}: has not finished.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{self.folder}: damaged run folder ({error}).") from error

    def picture(self, key: str) -> str | None:
        """The path of a picture that a page was told of; None of any other."""
        if key not in self._pictures:
            entries = read_log(self.folder)
            self._name([item[0] for own in entries if own["event"] == "mistakes" for item in own["items"]])
            for own in (one for entry in entries if entry["event"] == "findings" for one in entry["found"]):
                self._shown(own)
            with contextlib.suppress(RunError):
                self.summary()
        return self._pictures.get(key)

    def _word(self) -> str:
        if (self.folder / "run.json").is_file():
            return "finished"
        if is_under_way(self.folder):
            self._seen = True
            return "running"
        if not self._seen and self._expected is not None and self._expected():
            return "starting"
        return "stopped" if self.log.is_file() else "gone"

    def _dressed(self, line: bytes) -> bytes:
        if b'"mistakes"' not in line and b'"findings"' not in line:
            return line
        try:
            entry = json.loads(line)
            if entry["event"] == "mistakes":
                entry["items"] = [[*item[:3], None, self._name([item[0]])[0]] for item in entry["items"]]
            elif entry["event"] == "findings":
                entry["found"] = [self._shown(own) for own in entry["found"]]
        except (ValueError, KeyError, TypeError):
            return line
        return json.dumps(entry).encode()

    def _shown(self, finding: Figures) -> Figures:
        """A finding with the keys of its images' addresses beside their paths and words."""
        images = finding.get("images", [])
        keys = self._name(path for path, _ in images)
        shown = [[unicode_text(path), unicode_text(item), key] for (path, item), key in zip(images, keys, strict=True)]
        return finding | {"images": shown}

    def _mistakes(self) -> Figures | None:
        """Of val, or of test where there is no val, the surest first; None where there are no predictions."""
        try:
            rows = read_rows(self.folder / "predictions.csv")
        except OSError:
            return None
        splits = [row["split"] for row in rows]
        split = next((name for name in ("val", "test") if name in splits), "")
        label = "labels" if rows and "labels" in rows[0] else "label"
        own = [row for row in rows if row["split"] == split]
        wrong = sorted(
            (row for row in own if row[label] != row["predicted"]), key=lambda row: -float(row.get("probability") or 0)
        )
        shown = wrong[:SHOWN_MISTAKES]
        keys = self._name(row["path"] for row in shown)
        items = [
            [unicode_text(row["path"]), row[label], row["predicted"], _number(row.get("probability")), key]
            for row, key in zip(shown, keys, strict=True)
        ]
        return {"split": split, "count": len(wrong), "of": len(own), "items": items}

    def _name(self, paths: Iterable[str]) -> list[str]:
        """Keys of pictures' paths, from here on known."""
        keys = []
        for path in paths:
            key = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:20]
            self._pictures[key] = path_of(path)
            keys.append(key)
        return keys


def _number(text: str | None) -> float | None:
    return float(text) if text else None
