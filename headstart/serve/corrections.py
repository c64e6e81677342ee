"""Images that were given a wrong answer, kept under the right one: a folder that ``headstart train`` takes.

CORRECTIONS/
  .index.jsonl     a line for each correction, change and removal, in order; made anew from the folder where it is gone
  LABEL/
    0f3a...c1.jpg  the image as it was sent, named by its content: it stands there once, under its last label
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from headstart.data.dataset import is_hidden
from headstart.data.decode import SUFFIXES, decode
from headstart.errors import OptionError, OutputError
from headstart.files import user_path, write_atomically

LONGEST = 200
"""Bytes of a label: file systems take 255."""

MOST = 20_000
"""Pictures that are kept."""

KEY_LENGTH = 24

INDEX_FILE = ".index.jsonl"

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
    """The folder, and an index of it in memory.

    The index is read once; from then on each operation appends a line to ``INDEX_FILE`` and reads the lines that other
    processes have appended. No image is read again, however many there are.

    Args:
        folder: it is created with the first correction.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = folder / INDEX_FILE
        self._known: dict[str, Correction] | None = None
        self._read = 0
        self._one = threading.Lock()

    def all(self) -> list[Correction]:
        """Every correction, the last one first."""
        with self._one:
            return sorted(self._current().values(), key=lambda own: (-own.time, own.key))

    def find(self, key: str) -> Correction | None:
        """One of them."""
        with self._one:
            return self._current().get(key)

    def keep(
        self, data: bytes, label: str, *, max_pixels: int | None = None, max_decoded_pixels: int | None = None
    ) -> Correction:
        """Keeps an image under a label; one that is there already moves.

        Args:
            data: the image's file.
            label: the right one.
            max_pixels: pixels that it may hold, see ``decode``.
            max_decoded_pixels: pixels that may be decoded now, likewise.

        Raises:
            OptionError: the label cannot be a folder's name, or there are ``MOST``.
            UnreadableImage: nothing could be learnt from it.
            LargeImage: it takes more than ``max_decoded_pixels``.
            OutputError: the folder cannot be written.
        """
        name = folder_name(label)
        kind = decode(data, max_pixels=max_pixels, max_decoded_pixels=max_decoded_pixels).format
        suffix = SUFFIX_OF.get(kind, f".{kind.lower()}")
        key = hashlib.sha256(data).hexdigest()[:KEY_LENGTH]
        file = self.folder / name / f"{key}{suffix if suffix in SUFFIXES else '.png'}"
        with self._one, self._named_errors():
            known = self._current()
            before = known.get(key)
            if before is None and len(known) >= MOST:
                raise OptionError(f"{self.folder} holds {MOST:,} images already. Train with them, and move it away.")
            if before is None or not before.file.is_file():
                write_atomically(file, data)
            elif before.file != file:
                file.parent.mkdir(parents=True, exist_ok=True)
                os.replace(before.file, file)
                _remove_empty(before.file.parent)
            own = known[key] = Correction(key, name, file, time.time())
            self._append({"key": key, "label": name, "file": file.name, "time": own.time})
        return own

    def remove(self, key: str) -> bool:
        """Takes one back; False where there is none.

        Raises:
            OutputError: it cannot be removed.
        """
        with self._one, self._named_errors():
            own = self._current().pop(key, None)
            if own is None:
                return False
            own.file.unlink(missing_ok=True)
            _remove_empty(own.file.parent)
            self._append({"key": key, "removed": True})
        return True

    def _current(self) -> dict[str, Correction]:
        """The index, with what other processes have appended."""
        size = self._index.stat().st_size if self._index.is_file() else 0
        if self._known is None or size < self._read:
            self._known, self._read = {}, 0
            self._follow(self._known)
            self._reconcile(self._known)
        elif size > self._read:
            self._follow(self._known)
        return self._known

    def _follow(self, known: dict[str, Correction]) -> None:
        """Reads the index from where it was read last, line by line; half a line waits for its end."""
        with contextlib.suppress(OSError), open(self._index, "rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._take(known, json.loads(line))

    def _take(self, known: dict[str, Correction], entry: dict[str, Any]) -> None:
        key = str(entry["key"])
        if entry.get("removed"):
            known.pop(key, None)
        else:
            label, name = str(entry["label"]), Path(str(entry["file"])).name
            known[key] = Correction(key, label, self.folder / label / name, float(entry["time"]))

    def _reconcile(self, known: dict[str, Correction]) -> None:
        """What lies in the folder counts: images that were put there or taken away by hand; names only are read."""
        there = {file.stem: file for file in self._files()}
        for key in known.keys() - there.keys():
            del known[key]
        for key, file in there.items():
            label = unicodedata.normalize("NFC", file.parent.name)
            if key not in known or known[key].file != file:
                known[key] = Correction(key, label, file, file.stat().st_mtime)

    def _append(self, entry: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self._index, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for folder in sorted(self.folder.iterdir()):
                if folder.is_dir() and not is_hidden(folder.name):
                    yield from (own for own in sorted(folder.iterdir()) if not is_hidden(own.name) and own.is_file())

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
