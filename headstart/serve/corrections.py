"""Pictures that were given a wrong answer, kept under the right one: a folder that ``headstart train`` takes.

CORRECTIONS/
  LABEL/
    0f3a...c1.jpg  the picture as it was sent, named by its content: it stands there once, under its last label
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from headstart.data.dataset import is_hidden
from headstart.data.images import SUFFIXES, decode
from headstart.errors import OptionError, OutputError
from headstart.files import csv_text, read_rows, text_bytes, user_path, write_atomically
from headstart.store import content_key

LONGEST = 200
"""Bytes of a label: file systems take 255."""

MOST = 20_000
"""Pictures that are kept."""

KEY_LENGTH = 24

SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "HEIF": ".heic", "JPEG2000": ".jp2", "PPM": ".ppm"}
"""Pillow's names of formats, where the ending is not the name itself."""

FOREIGN = '<>:"|?*'
"""What the names of files cannot hold on Windows."""


@dataclass(frozen=True)
class Correction:
    """A picture and its right label.

    Attributes:
        key: of its content.
        label: the right one.
        file: where it is kept.
        time: when it was, seconds since 1970.
    """

    key: str
    label: str
    file: Path
    time: float


def corrections_folder(run_or_model: Path) -> Path:
    """Where corrections of a model are kept if nobody says where: beside the run, or the file."""
    place = user_path(run_or_model)
    if place.is_dir():
        place = place.resolve()
        return place.with_name(f"{place.name}-corrections")
    return place.with_name(f"{place.stem}-corrections") if place.is_file() else Path(f"{place.name}-corrections")


def folder_name(label: str) -> str:
    """A label as the name of a folder, from which training reads it back.

    Raises:
        OptionError: it cannot be one.
    """
    name = unicodedata.normalize("NFC", " ".join(label.split()))
    if not name:
        raise OptionError("Say what it is.")
    if len(name.encode(errors="replace")) > LONGEST:
        raise OptionError(f"That name is too long: {LONGEST} bytes at most.")
    forbidden = [c for c in name if c in "/\\" or unicodedata.category(c).startswith("C")]
    forbidden += [c for c in name if c in FOREIGN] if os.name == "nt" else []
    if forbidden:
        raise OptionError(f"A class becomes a folder, whose name cannot hold {forbidden[0]!r}.")
    if is_hidden(name) or (os.name == "nt" and name.endswith(".")):
        raise OptionError(f"A class becomes a folder, and one that is named {name!r} is not looked at in training.")
    return name


@final
class Corrections:
    """The folder.

    Args:
        folder: it is made with the first correction.
        split: the table of a run's images, where there is one: then a table of these and of the corrections is kept
            beside the folder, so that a new run can learn from both.
    """

    def __init__(self, folder: Path, *, split: Path | None = None) -> None:
        self.folder = folder
        self.split = split if split is not None and split.is_file() else None
        self._one = threading.Lock()

    @property
    def table(self) -> Path | None:
        """The table to train on; None without a run."""
        return None if self.split is None else self.folder.with_name(f"{self.folder.name}.csv")

    def all(self) -> list[Correction]:
        """Every correction, the last one first."""
        found = [
            Correction(file.stem, unicodedata.normalize("NFC", file.parent.name), file, file.stat().st_mtime)
            for file in self._files()
        ]
        return sorted(found, key=lambda own: (-own.time, own.key))

    def find(self, key: str) -> Correction | None:
        """One of them."""
        return next((own for own in self.all() if own.key == key), None)

    def keep(self, data: bytes, label: str, *, most: int | None = None, at_once: int | None = None) -> Correction:
        """Keeps a picture under a label; one that is there already moves.

        Args:
            data: the picture's file.
            label: the right one.
            most: pixels that it may hold, see ``decode``.
            at_once: pixels that may be decoded now, likewise.

        Raises:
            OptionError: the label cannot be a folder's name, or there are ``MOST``.
            UnreadableImage: nothing could be learnt from it.
            LargeImage: it takes more than ``at_once``.
            OutputError: the folder cannot be written.
        """
        name = folder_name(label)
        kind = decode(data, most=most, at_once=at_once).format
        suffix = SUFFIX_OF.get(kind, f".{kind.lower()}")
        key = hashlib.sha256(data).hexdigest()[:KEY_LENGTH]
        file = self.folder / name / f"{key}{suffix if suffix in SUFFIXES else '.png'}"
        with self._one, self._named_errors():
            before = [own for own in self._files() if own.stem == key]
            if not before and sum(1 for _ in self._files()) >= MOST:
                raise OptionError(f"{self.folder} holds {MOST:,} pictures already. Train with them, and move it away.")
            if before and before[0] != file:
                file.parent.mkdir(parents=True, exist_ok=True)
                os.replace(before[0], file)
                os.utime(file)
                _remove_empty(before[0].parent)
            elif not before:
                write_atomically(file, data)
            self._write_table()
        return Correction(key, name, file, file.stat().st_mtime)

    def remove(self, key: str) -> bool:
        """Takes one back; False where there is none.

        Raises:
            OutputError: it cannot be removed.
        """
        with self._one, self._named_errors():
            found = [own for own in self._files() if own.stem == key]
            for file in found:
                file.unlink()
                _remove_empty(file.parent)
            if found:
                self._write_table()
        return bool(found)

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for folder in sorted(self.folder.iterdir()):
                if folder.is_dir() and not is_hidden(folder.name):
                    yield from (own for own in sorted(folder.iterdir()) if not is_hidden(own.name) and own.is_file())

    def _write_table(self) -> None:
        """The run's images as they were split, and the corrected ones for training; what is both has its new label.

        It stays in its split, but where the class is new: that is to be learnt.
        """
        if self.split is None or self.table is None:
            return
        own = {content_key(file.read_bytes()).hex(): file for file in self._files()}
        if not own:
            self.table.unlink(missing_ok=True)
            return
        rows = [row for row in read_rows(self.split) if row["split"]]
        seen, classes = {row["content"] for row in rows}, {row["label"] for row in rows}
        lines = []
        for row in rows:
            moved = own.get(row["content"])
            label = row["label"] if moved is None else moved.parent.name
            lines.append([row["path"], label, row["split"] if label in classes else "train", row.get("group", "")])
        lines += [[str(file.resolve()), file.parent.name, "train", ""] for key, file in own.items() if key not in seen]
        columns = 4 if any(line[3] for line in lines) else 3
        table = [line[:columns] for line in [["path", "label", "split", "group"], *lines]]
        write_atomically(self.table, text_bytes(csv_text(table)))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror or error}.") from error


def _remove_empty(folder: Path) -> None:
    """A class folder without images would be named in every check of the data."""
    with contextlib.suppress(OSError):
        folder.rmdir()
