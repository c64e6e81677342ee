"""Files of a session beside its source: table of labels, journal, and the lock with the address of the session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from headstart.data.sources.addresses import absolute, is_glob, is_url, parent_of, title_of, user_address
from headstart.errors import LabelError, OptionError, OutputError
from headstart.files import UserPath, not_written, user_path

ENDING = "-labels"
"""Appended to the name of the source."""


@dataclass(frozen=True)
class LabelFiles:
    """Paths of a session's files.

    Attributes:
        table: ``NAME-labels.csv``.
        journal: ``NAME-labels.journal.jsonl``.
        lock: held by the process that writes.
        address: where that process is served; removed at the end.
    """

    table: Path
    journal: Path
    lock: Path
    address: Path

    @classmethod
    def of_table(cls, table: UserPath) -> LabelFiles:
        """The files beside a table of labels.

        Raises:
            OptionError: its name does not end in .csv.
        """
        path = user_path(table).absolute()
        if path.suffix.lower() != ".csv" or path.is_dir():
            raise OptionError(f"{table}: expected a file name that ends in .csv for the labels.")
        hidden = path.with_name(f".{path.stem}")
        return cls(
            path,
            path.with_suffix(".journal.jsonl"),
            hidden.with_name(f"{hidden.name}.lock"),
            hidden.with_name(f"{hidden.name}.address"),
        )

    @classmethod
    def of_source(cls, source: UserPath | Iterable[UserPath]) -> LabelFiles:
        """The files beside a folder, archive or table; for a URL and for a list of images in the current folder."""
        if not isinstance(source, (str, os.PathLike)):
            return cls.of_table(f"images{ENDING}.csv")
        address = user_address(source)
        name = title_of(address)
        stem = name if os.path.isdir(address) else os.path.splitext(name)[0]
        folder = Path() if is_url(address) else Path(parent_of(absolute(address).rstrip("/")))
        if is_glob(address):
            folder = folder.parent
        return cls.of_table(folder / f"{stem or 'images'}{ENDING}.csv")

    def remove(self) -> None:
        """Removes the table and the journal of a session that never had an image."""
        for file in (self.table, self.journal):
            with contextlib.suppress(OSError):
                file.unlink()


@final
class SessionLock:
    """Lets one process at a time write the files of a session. The system releases it when the process ends.

    Args:
        files: of the session.

    Raises:
        LabelError: another process holds it; the message has the address where it is served.
        OutputError: the folder cannot be written.
    """

    def __init__(self, files: LabelFiles) -> None:
        self.files, self._is_held = files, False
        self._lock = FileLock(files.lock, timeout=0)
        try:
            files.table.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._is_held = True
        except Timeout:
            if not files.lock.exists():  # it could not be created
                raise OutputError(f"{files.table}: cannot be written. Choose another file with --labels.") from None
            raise LabelError(f"{files.table}: another process is labelling these images{self._where()}.") from None
        except NotImplementedError:  # a file system without locks
            return
        except OSError as error:
            raise OutputError(f"{not_written(files.table, error)}, or choose another file with --labels.") from error

    def _where(self) -> str:
        with contextlib.suppress(OSError):
            if address := self.files.address.read_text().strip():
                return f" at {address}. Open that address, or stop it first"
        return ". Wait for it, or stop it first"

    def served_at(self, address: str) -> None:
        """Writes the address of the session for other processes."""
        with contextlib.suppress(OSError):
            self.files.address.write_text(address)

    def release(self) -> None:
        """Releases the lock and removes its files."""
        for file in (self.files.address, self.files.lock) if self._is_held else ():
            with contextlib.suppress(OSError):
                file.unlink()
        self._lock.release()
