"""User paths, atomic writes, and text encodings that are safe for CSV, JSON and spreadsheets."""

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

from .errors import HeadstartError, OptionError, OutputError, WriteError
from .extras import require_extra

UserPath = str | os.PathLike[str]
"""A path given by a caller or an environment variable; ``user_path`` parses it."""


_SUSPECT: Final = frozenset("'=+-@\t\r\n＝＋－＠")
_FORMULA: Final = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
"""Start of a cell that a spreadsheet may evaluate as a formula, possibly after apostrophes."""

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?inf|nan")


def user_path(path: UserPath) -> Path:
    """Parses a path given by a user: expands ``~`` and ``~name``, and undoes the escapes of ``unicode_text``.

    An existing file whose name starts with a tilde, such as "~1.jpg", is not expanded.

    Raises:
        OptionError: not a path, an empty one, or ``~name`` of a user without a home folder on this machine.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(text := os.fspath(path), str):
        raise OptionError(f"expected a path (str or pathlib.Path), got {type(path).__name__}.")
    if not text or "\0" in text:
        raise OptionError(f"{text!r}: not a path; {'it contains a zero byte' if text else 'it is empty'}.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise OptionError(f"{unicode_text(text)}: not a path; it has a character that no path can have.") from error
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
    """A temporary file next to ``path``, renamed to it at the end of the block, or removed if the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Removes the temporary files of ``replacing`` below a folder that killed processes of this machine left there.

    Raises:
        OSError: one cannot be removed.
    """
    for partial in folder.rglob(".*.partial"):
        writer = partial.suffixes[-2][1:] if len(partial.suffixes) > 1 else ""
        if not (writer.isdecimal() and is_process(int(writer))):
            partial.unlink(missing_ok=True)


def is_process(number: int) -> bool:
    """Whether a process of this machine runs; on Windows, where that is not looked up, True for this one alone."""
    if number == os.getpid() or os.name == "nt":
        return number == os.getpid()
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, then renames it."""
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def writing_run(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Context for writing a file of a run; turns OSError into an error with a remedy.

    Args:
        folder: the run folder.
        file: the file to write; the folder if None.

    Raises:
        WriteError: the file cannot be written; the message gives the reason, the remedy and how to continue the run.
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
    """Start of a message: why a file cannot be written, and the remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space, or remove some files where the file system is out of inodes"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Make the folder writable"
    else:
        remedy = "Check the path and the disk"
    return f"{path}: cannot be written ({error.strerror or error}). {remedy}"


@contextmanager
def output_file(path: UserPath, suffixes: Sequence[str]) -> Iterator[Path]:
    """``replacing`` for a file given by a user.

    Raises:
        OutputError: its suffix is not one of ``suffixes``, or it cannot be written.
    """
    path = check_suffix(path, suffixes)
    try:
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise OutputError(f"{not_written(path, error)}, or name another file.") from error


def check_suffix(path: UserPath, suffixes: Sequence[str]) -> Path:
    """Parses the path of an output file (see ``user_path``) and checks it before any long computation.

    Raises:
        OutputError: its suffix is not one of ``suffixes``, or it is a folder.
        MissingExtra: its suffix is .parquet, and pyarrow is not installed.
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
    """Reads a CSV file with a header, as written by ``csv_text`` and ``text_bytes``; does not handle OSError.

    Escaped paths are restored, see ``path_of``.
    """
    with open(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = [
            {original(name): original(cell or "") for name, cell in row.items() if name} for row in csv.DictReader(file)
        ]
    return [row | {"path": path_of(row["path"])} if "path" in row else row for row in rows]


def write_csv_file(path: UserPath, text: str) -> None:
    """Writes a CSV file given by a user atomically.

    Raises:
        OutputError: its suffix is not .csv, or it cannot be written.
    """
    with output_file(path, [".csv"]) as partial:
        partial.write_bytes(text_bytes(text))


def csv_text(rows: Iterable[Sequence[str]], *, separator: str = ",", line_end: str = "\n") -> str:
    """Rows as CSV text; cells that a spreadsheet would evaluate as formulas are escaped (see ``inert``)."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end)
    writer.writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def inert(cell: str) -> str:
    """Escapes a cell that starts like a formula with an apostrophe; numbers are unchanged. ``original`` undoes it.

    File names and class names are untrusted, and a formula may run a program or send data.

    Source: OWASP, CSV injection.
    """
    if cell[:1] not in _SUSPECT or not _FORMULA.match(cell) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def original(cell: str) -> str:
    """Undoes ``inert``."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell, 1) else cell


def unicode_text(text: str) -> str:
    """Text for CSV, JSON and Parquet: escapes bytes of file names that are not UTF-8; ``path_of`` undoes it."""
    if text.isascii():
        return text
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # unpaired surrogates that do not come from a file name
        return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """Escapes control characters and invalid Unicode in a file name, so that it stays on one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in unicode_text(text))


def text_bytes(text: str) -> bytes:
    """Encodes text as UTF-8 (see ``unicode_text``)."""
    return unicode_text(text).encode()


def json_text(document: Any, *, indent: int | None = None) -> str:
    """A document as ASCII JSON, with texts escaped by ``unicode_text``."""
    return json.dumps(_unicode(document), indent=indent)


def parsed_json(text: str | bytes) -> Any:
    """Parses a JSON document that somebody else wrote.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON document is nested too deeply") from error


def path_of(text: str) -> str:
    """The path that ``unicode_text`` escaped; the text itself if no such file exists."""
    if "\\x" not in text or os.path.lexists(text):
        return text
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(text))
    path = os.fsdecode(raw)
    return path if os.path.lexists(path) else text


def last_part(path: str) -> str:
    """The name of a file or folder, by the rules of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "."


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return unicode_text(value)
    if isinstance(value, dict):
        return {_unicode(name): _unicode(entry) for name, entry in value.items()}
    return [_unicode(entry) for entry in value] if isinstance(value, (list, tuple)) else value
