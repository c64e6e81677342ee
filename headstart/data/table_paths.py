"""Paths in tables: the file that a path means, also with backslashes or without its suffix."""

from __future__ import annotations

import os
import unicodedata
from typing import final

from headstart.data.finding import Finding
from headstart.data.image_formats import SUFFIXES
from headstart.data.sources.addresses import is_url, name_of, split_address
from headstart.files import path_of


@final
class TablePaths:
    """Finds the files of a table's paths.

    Args:
        base: folder that relative paths start at.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.turned: list[str] = []
        self.completed: list[str] = []
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, written: str) -> str:
        """The path as written if the file exists, else the path of the one file that it probably means.

        For example with slashes instead of backslashes, with the missing extension, or in another Unicode form. A path
        that matches no file, or more than one, stays as written, and so do URLs and members of archives.
        """
        if is_url(written) or is_url(self.base) or split_address(written)[1]:
            return written
        if os.path.exists(os.path.join(self.base, written)):
            return written
        if (path := path_of(os.path.join(self.base, written))) != os.path.join(self.base, written):
            return os.path.relpath(path, self.base) if not os.path.isabs(written) else path
        path = written.replace("\\", "/")
        if path != written and os.path.exists(os.path.join(self.base, path)):
            self.turned.append(written)
            return path
        folder, name = os.path.split(path)
        fitting = self._names(folder).get(unicodedata.normalize("NFC", name), [])
        if len(fitting) != 1:
            return written
        (self.turned if path != written else self.completed).append(written)
        return os.path.join(folder, fitting[0])

    def findings(self, file: str) -> list[Finding]:
        """Paths that were read differently from how they are written."""
        found = []
        for written, what in (
            (self.turned, "contain backslashes, which are read as slashes"),
            (self.completed, "lack the file's extension or use another Unicode form; the matching file is used"),
        ):
            if written:
                message = f"{name_of(file)}: {len(written):,} path(s) {what}"
                found.append(Finding("path-spelling", "note", message, tuple(written)))
        return found

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Names of image files, with and without suffix, in Unicode's composed form -> the files."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                files = os.listdir(os.path.join(self.base, folder))
            except (OSError, ValueError):  # ValueError: a zero byte, or an unpaired surrogate
                files = []
            for file in files:
                stem, ending = os.path.splitext(unicodedata.normalize("NFC", file))
                if ending.lower() in SUFFIXES:
                    names.setdefault(stem, []).append(file)
                    names.setdefault(stem + ending, []).append(file)
            self._listed[folder] = names
        return self._listed[folder]
