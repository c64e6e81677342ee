"""Paths as users write them, and files that are written whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from headstart.errors import HeadstartError, OptionError, OutputError, WriteError
from headstart.extras import require_extra

UserPath = str | os.PathLike[str]
"""A path as a caller or an environment variable names it; ``user_path`` reads it."""


_SUSPECT: Final = frozenset("'=+-@\t\r\n＝＋－＠")
_FORMULA: Final = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
"""How a cell begins that a spreadsheet may take for a formula, perhaps behind apostrophes."""

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?inf|nan")


def user_path(path: UserPath) -> Path:
    """A path that a user named, with ``~`` and ``~name`` expanded; or as ``unicode_text`` wrote it.

    A name that only begins with a tilde, such as the temporary file "~1.jpg", stays as it is where such a file exists.

    Raises:
        OptionError: not a path, an empty one, or one in the home folder of a user who has none on this machine.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(text := os.fspath(path), str):
        raise OptionError(f"expected a path (str or pathlib.Path), got {type(path).__name__}.")
    if not text or "\0" in text:
        raise OptionError(f"{text!r}: not a path; {'it contains a zero byte' if text else 'it is empty'}.")
    try:
        return Path(path_of(text)).expanduser()
    except RuntimeError as error:
        if os.path.lexists(text):
            return Path(text)
        user = Path(text).parts[0][1:]
        why = f"no user {user!r} on this machine" if user else "this user has no home folder (HOME is not set)"
        raise OptionError(f"{text}: {why}. Give the full path.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well, else is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a whole file under a temporary name and renames it."""
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def writing_run(folder: Path, file: Path | None = None) -> Iterator[None]:
    """The time in which a file of a run is written.

    Args:
        folder: of the run.
        file: that is written; the folder itself where it is not given.

    Raises:
        WriteError: it cannot be written; says why, what to do, and how the run goes on then.
    """
    try:
        yield
    except (OSError, HeadstartError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(error, WriteError) or not isinstance(cause, OSError):
            raise
        again = "run the same command again"
        if (folder / "start.json").exists() and not (folder / "run.json").exists():
            again = f"continue the run: headstart train --resume {folder}"
        raise WriteError(f"{not_written(file or folder, cause)}, then {again}") from cause


def not_written(path: Path, error: OSError) -> str:
    """Why a file cannot be written, and what to do, as the beginning of a message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space, or remove some files where the file system is out of inodes"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Make the folder writable"
    else:
        remedy = "Check the path and the disk"
    return f"{path}: cannot be written ({error.strerror or error}). {remedy}"


@contextmanager
def output_file(path: UserPath, suffixes: Sequence[str]) -> Iterator[Path]:
    """``replacing`` for a file that the user named.

    Raises:
        OutputError: its ending is not one of ``suffixes``, or it cannot be written.
    """
    path = check_suffix(path, suffixes)
    try:
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise OutputError(f"{not_written(path, error)}, or name another file.") from error


def check_suffix(path: UserPath, suffixes: Sequence[str]) -> Path:
    """The file that the user named, see ``user_path``; its ending is checked before any work is done for it.

    Raises:
        OutputError: it is none of ``suffixes``, or the path is a folder.
        MissingExtra: it is .parquet, and pyarrow is not installed.
    """
    path = user_path(path)
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"{path}: expected a name that ends in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file in it.")
    if path.suffix.lower() == ".parquet":
        require_extra("parquet", f"writing {path}")
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as ``csv_text`` and ``text_bytes`` write it; an OSError is the caller's.

    Paths are those of the files again, see ``path_of``.
    """
    with open(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = [
            {original(name): original(cell or "") for name, cell in row.items() if name} for row in csv.DictReader(file)
        ]
    return [row | {"path": path_of(row["path"])} if "path" in row else row for row in rows]


def write_csv_file(path: UserPath, text: str) -> None:
    """Writes a table that the user named, whole or not at all.

    Raises:
        OutputError: its ending is not .csv, or it cannot be written.
    """
    with output_file(path, [".csv"]) as partial:
        partial.write_bytes(text_bytes(text))


def csv_text(rows: Iterable[Sequence[str]], *, separator: str = ",", line_end: str = "\n") -> str:
    """Rows as CSV; no cell is a formula for a spreadsheet (see ``inert``)."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end)
    writer.writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def inert(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: with an apostrophe before it where it begins like one.

    File names and class names come from anywhere, and a formula may run a program or send data. Numbers stay as they
    are. ``original`` undoes it.

    Source: OWASP, CSV injection.
    """
    if cell[:1] not in _SUSPECT or not _FORMULA.match(cell) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def original(cell: str) -> str:
    """What ``inert`` made inert."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell, 1) else cell


def unicode_text(text: str) -> str:
    """Text for CSV, JSON and Parquet: bytes of a file name that are not UTF-8 become escapes, undone by ``path_of``."""
    if text.isascii():
        return text
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # halves of a character, which no file name gives
        return text.encode(errors="backslashreplace").decode()


def text_bytes(text: str) -> bytes:
    """UTF-8, see ``unicode_text``."""
    return unicode_text(text).encode()


def json_text(document: Any, *, indent: int | None = None) -> str:
    """JSON in ASCII; texts as ``unicode_text`` has them."""
    return json.dumps(_unicode(document), indent=indent)


def path_of(text: str) -> str:
    """The path of a file that ``unicode_text`` wrote; the text itself where there is no such file."""
    if "\\x" not in text or os.path.lexists(text):
        return text
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(text))
    path = os.fsdecode(raw)
    return path if os.path.lexists(path) else text


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return unicode_text(value)
    if isinstance(value, dict):
        return {_unicode(name): _unicode(own) for name, own in value.items()}
    return [_unicode(own) for own in value] if isinstance(value, (list, tuple)) else value
