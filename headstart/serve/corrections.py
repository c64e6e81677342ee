"""Corrected images, stored by label: a folder that ``headstart train`` accepts.

CORRECTIONS/
  .index.jsonl     one line per correction, change and removal, in order; rebuilt from the folder if it is missing
  LABEL/
    0f3a...c1.jpg  the image as it was sent, named by its content hash: each image once, under its latest label
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

from headstart.data.class_folders import folder_name
from headstart.data.decode import decode
from headstart.data.file_tree import is_hidden
from headstart.data.image_formats import SUFFIXES
from headstart.errors import OptionError, OutputError
from headstart.files import parsed_json, user_path, write_atomically

MAX_CORRECTIONS = 20_000
"""Maximum number of images in the folder; the index is in memory."""

KEY_LENGTH = 24
"""Hexadecimal digits of the content hash in a file name."""

INDEX_FILE = ".index.jsonl"

SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "HEIF": ".heic", "JPEG2000": ".jp2", "PPM": ".ppm"}
"""File suffixes of Pillow's formats whose suffix is not the format name."""


@dataclass(frozen=True)
class Correction:
    """A corrected image.

    Attributes:
        key: content hash.
        label: correct label.
        file: path of the stored image.
        time: time of the correction, in seconds since 1970.
    """

    key: str
    label: str
    file: Path
    time: float


def corrections_folder(run_or_model: Path) -> Path:
    """Default folder for corrections: NAME-corrections next to the run folder or the model file."""
    place = user_path(run_or_model)
    if place.is_dir():
        place = place.resolve()
        return place.with_name(f"{place.name}-corrections")
    return place.with_name(f"{place.stem}-corrections") if place.is_file() else Path(f"{place.name}-corrections")


@final
class Corrections:
    """A folder of corrected images, with its index in memory.

    The index is read once. Each operation then appends a line to ``INDEX_FILE`` and reads the lines that other
    processes have appended, so that its cost does not grow with the number of images.

    Args:
        folder: created with the first correction.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = folder / INDEX_FILE
        self._entries: dict[str, Correction] | None = None
        self._read_bytes = 0
        self._lock = threading.Lock()

    def all(self) -> list[Correction]:
        """All corrections, latest first."""
        with self._lock:
            return sorted(self._current().values(), key=lambda correction: (-correction.time, correction.key))

    def find(self, key: str) -> Correction | None:
        """The correction with this content hash; None if there is none."""
        with self._lock:
            return self._current().get(key)

    def keep(
        self, data: bytes, label: str, *, max_pixels: int | None = None, max_decoded_pixels: int | None = None
    ) -> Correction:
        """Stores an image under a label. An image that is already stored moves to the new label.

        Args:
            data: encoded image.
            label: correct label.
            max_pixels: maximum number of pixels, see ``decode``.
            max_decoded_pixels: pixels that may be decoded now, see ``decode``.

        Raises:
            OptionError: the label cannot be a folder name, or the folder has ``MAX_CORRECTIONS`` images.
            UnreadableImage: the image cannot be decoded, so training could not use it.
            LargeImage: the image has more pixels than ``max_decoded_pixels``.
            OutputError: the folder cannot be written.
        """
        name = folder_name(label)
        kind = decode(data, max_pixels=max_pixels, max_decoded_pixels=max_decoded_pixels).format
        suffix = SUFFIX_OF.get(kind, f".{kind.lower()}")
        key = hashlib.sha256(data).hexdigest()[:KEY_LENGTH]
        file = self.folder / name / f"{key}{suffix if suffix in SUFFIXES else '.png'}"
        with self._lock, self._named_errors():
            entries = self._current()
            before = entries.get(key)
            if before is None and len(entries) >= MAX_CORRECTIONS:
                raise OptionError(
                    f"{self.folder}: full ({MAX_CORRECTIONS:,} images). Train with these corrections, then move "
                    "the folder elsewhere."
                )
            if before is None or not before.file.is_file():
                write_atomically(file, data)
            elif before.file != file:
                file.parent.mkdir(parents=True, exist_ok=True)
                os.replace(before.file, file)
                _remove_empty(before.file.parent)
            correction = entries[key] = Correction(key, name, file, time.time())
            self._append({"key": key, "label": name, "file": file.name, "time": correction.time})
        return correction

    def remove(self, key: str) -> bool:
        """Deletes a correction and its image; False if there is none.

        Raises:
            OutputError: the image cannot be deleted.
        """
        with self._lock, self._named_errors():
            correction = self._current().pop(key, None)
            if correction is None:
                return False
            correction.file.unlink(missing_ok=True)
            _remove_empty(correction.file.parent)
            self._append({"key": key, "removed": True})
        return True

    def _current(self) -> dict[str, Correction]:
        """The index, including the lines that other processes have appended."""
        size = self._index.stat().st_size if self._index.is_file() else 0
        if self._entries is None or size < self._read_bytes:
            self._entries, self._read_bytes = {}, 0
            self._read_new_lines(self._entries)
            self._reconcile(self._entries)
        elif size > self._read_bytes:
            self._read_new_lines(self._entries)
        return self._entries

    def _read_new_lines(self, entries: dict[str, Correction]) -> None:
        """Reads new lines of the index file. An incomplete last line is left for the next call."""
        with contextlib.suppress(OSError), open(self._index, "rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError):
                    self._apply(entries, parsed_json(line))

    def _apply(self, entries: dict[str, Correction], entry: dict[str, Any]) -> None:
        key = str(entry["key"])
        if entry.get("removed"):
            entries.pop(key, None)
        else:
            label, name = str(entry["label"]), Path(str(entry["file"])).name
            entries[key] = Correction(key, label, self.folder / label / name, float(entry["time"]))

    def _reconcile(self, entries: dict[str, Correction]) -> None:
        """Corrects the index by the file names in the folder: users may add, move and delete images by hand."""
        stored = {file.stem: file for file in self._files()}
        for key in entries.keys() - stored.keys():
            del entries[key]
        for key, file in stored.items():
            label = unicodedata.normalize("NFC", file.parent.name)
            if key not in entries or entries[key].file != file:
                entries[key] = Correction(key, label, file, file.stat().st_mtime)

    def _append(self, entry: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self._index, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for folder in sorted(self.folder.iterdir()):
                if folder.is_dir() and not is_hidden(folder.name):
                    yield from (
                        file for file in sorted(folder.iterdir()) if not is_hidden(file.name) and file.is_file()
                    )

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror or error}).") from error


def _remove_empty(folder: Path) -> None:
    """Removes an empty class folder, which the data check would report."""
    with contextlib.suppress(OSError):
        folder.rmdir()
