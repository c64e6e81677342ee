"""Reads the folder of an active or finished run, without a connection to the training process."""

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
from typing import Any, Final, TypeAlias, final

from headstart.data.finding import Finding
from headstart.errors import RunError
from headstart.files import path_of, read_rows, unicode_text
from headstart.runs.log import LOG_FILE, read_log
from headstart.runs.status import is_running, read_status

SHOWN_MISTAKES: Final = 24

CHECKSUM_BYTES: Final = 4096
"""Bytes before a position in the log over which its checksum is computed."""

JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class LogPosition:
    """A position in a log file that can be recognised again.

    Attributes:
        offset: byte offset.
        check: CRC-32 of the ``CHECKSUM_BYTES`` before it; None if unknown.
    """

    offset: int = 0
    check: int | None = None

    def __str__(self) -> str:
        return str(self.offset) if self.check is None else f"{self.offset}-{self.check:08x}"

    @classmethod
    def read(cls, text: str) -> LogPosition:
        """Parses the text of ``str``; the start of the log if it is invalid."""
        found = re.fullmatch(r"(\d{1,15})(?:-([0-9a-f]{8}))?", text.strip())
        if found is None:
            return cls()
        return cls(int(found[1]), int(found[2], 16) if found[2] else None)


@dataclass(frozen=True)
class LogTail:
    """New lines of a log.

    Attributes:
        reset: whether the log was rewritten (a resumed run cuts it), so that earlier lines are no longer valid.
        lines: complete lines, each with the position after it.
    """

    reset: bool
    lines: tuple[tuple[LogPosition, bytes], ...]


def read_tail(log: Path, after: LogPosition) -> LogTail:
    """Reads the lines after a position; no lines if the log does not exist."""
    try:
        with open(log, "rb") as file:
            begin = max(0, after.offset - CHECKSUM_BYTES)
            file.seek(begin)
            data = file.read()
    except OSError:
        return LogTail(after.offset > 0, ())
    before, new = data[: after.offset - begin], data[after.offset - begin :]
    is_same = len(before) == after.offset - begin and (not before or before.endswith(b"\n"))
    if not is_same or (after.check is not None and zlib.crc32(before) != after.check):
        return LogTail(True, read_tail(log, LogPosition()).lines)
    return LogTail(False, tuple(_complete_lines(new, before, after.offset)))


def _complete_lines(new: bytes, before: bytes, offset: int) -> Iterable[tuple[LogPosition, bytes]]:
    for line in new.splitlines(keepends=True):
        if not line.endswith(b"\n"):  # still being written
            return
        offset += len(line)
        before = (before + line)[-CHECKSUM_BYTES:] if len(line) < CHECKSUM_BYTES else line[-CHECKSUM_BYTES:]
        yield LogPosition(offset, zlib.crc32(before)), line


@final
class RunReader:
    """Reader of a run folder.

    Args:
        folder: run folder, which may not exist yet.
        served: whether the same server serves the model of the run.
        expected: whether a training that will create the folder is still alive; None if there is none.
    """

    def __init__(self, folder: Path, *, served: bool = False, expected: Callable[[], bool] | None = None) -> None:
        self.folder, self.served, self._expected = folder, served, expected
        self.log = folder / LOG_FILE
        self._paths: dict[str, str] = {}
        self._has_run = False

    def state(self) -> JsonObject:
        """Name and state of the run, and the commands to resume it and to open the view again."""
        quoted = shlex.quote(unicode_text(str(self.folder)))
        return {
            "name": unicode_text(self.folder.resolve().name),
            "folder": unicode_text(str(self.folder)),
            "state": self._state(),
            "served": self.served,
            "resume": f"headstart train --resume {quoted} --watch",
            "again": f"headstart {'serve' if self.served else 'watch'} {quoted}",
        }

    def status(self) -> JsonObject | None:
        """Live status of the run: task, progress and messages. See ``runs.status``."""
        return read_status(self.folder)

    def tail(self, after: LogPosition) -> LogTail:
        """New lines of the log, see ``read_tail``. Images in them have the keys of ``image_path``."""
        tail = read_tail(self.log, after)
        return LogTail(tail.reset, tuple((position, self._with_image_keys(line)) for position, line in tail.lines))

    def summary(self) -> JsonObject:
        """Scores, findings and mistakes of a finished run.

        Raises:
            RunError: the run has not finished, or its files are damaged.
        """
        try:
            document = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            left_out = ("classes", "confusion")
            scores = {n: {k: v for k, v in s.items() if k not in left_out} for n, s in document["scores"].items()}
            base = document["data"]["base"]
            found = [self._with_keys(Finding.from_json(entry).brief(base)) for entry in document["findings"]]
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
            raise RunError(f"{self.folder}: the run has not finished.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{self.folder}: damaged run folder ({error}).") from error

    def image_path(self, key: str) -> str | None:
        """Path of an image of this run; None for a key that was not sent to a page."""
        if key not in self._paths:
            entries = read_log(self.folder)
            self._keys_of([item[0] for entry in entries if entry["event"] == "mistakes" for item in entry["items"]])
            for finding in (found for entry in entries if entry["event"] == "findings" for found in entry["found"]):
                self._with_keys(finding)
            with contextlib.suppress(RunError):
                self.summary()
        return self._paths.get(key)

    def _state(self) -> str:
        if (self.folder / "run.json").is_file():
            return "finished"
        if is_running(self.folder):
            self._has_run = True
            return "running"
        if not self._has_run and self._expected is not None and self._expected():
            return "starting"
        return "stopped" if self.log.is_file() else "gone"

    def _with_image_keys(self, line: bytes) -> bytes:
        """A line of the log with keys for its images; other lines unchanged."""
        if b'"mistakes"' not in line and b'"findings"' not in line:
            return line
        try:
            entry = json.loads(line)
            if entry["event"] == "mistakes":
                entry["items"] = [[*item[:3], None, self._keys_of([item[0]])[0]] for item in entry["items"]]
            elif entry["event"] == "findings":
                entry["found"] = [self._with_keys(finding) for finding in entry["found"]]
        except (ValueError, KeyError, TypeError):
            return line
        return json.dumps(entry).encode()

    def _with_keys(self, finding: JsonObject) -> JsonObject:
        """A finding with a key for each of its images."""
        images = finding.get("images", [])
        keys = self._keys_of(path for path, _ in images)
        keyed = [[unicode_text(path), unicode_text(text), key] for (path, text), key in zip(images, keys, strict=True)]
        return finding | {"images": keyed}

    def _mistakes(self) -> JsonObject | None:
        """Most confident mistakes on val, or on test if there is no val; None if there are no predictions."""
        try:
            rows = read_rows(self.folder / "predictions.csv")
        except OSError:
            return None
        splits = [row["split"] for row in rows]
        split = next((name for name in ("val", "test") if name in splits), "")
        label = "labels" if rows and "labels" in rows[0] else "label"
        in_split = [row for row in rows if row["split"] == split]
        wrong = [row for row in in_split if row[label] != row["predicted"]]
        shown = sorted(wrong, key=lambda row: -float(row.get("probability") or 0))[:SHOWN_MISTAKES]
        keys = self._keys_of(row["path"] for row in shown)
        items = [
            [unicode_text(row["path"]), row[label], row["predicted"], _number(row.get("probability")), key]
            for row, key in zip(shown, keys, strict=True)
        ]
        return {"split": split, "count": len(wrong), "of": len(in_split), "items": items}

    def _keys_of(self, paths: Iterable[str]) -> list[str]:
        """Keys for paths, so that a page can request only images of the run; see ``image_path``."""
        keys = []
        for path in paths:
            key = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:20]
            self._paths[key] = path_of(path)
            keys.append(key)
        return keys


def _number(text: str | None) -> float | None:
    return float(text) if text else None
