"""Where an export is written: a file or folder that is complete, or not there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headstart.errors import OutputError
from headstart.exports.formats.interface import ExportFormat
from headstart.files import UserPath, check_suffix, is_process, not_written, user_path


def check_destination(path: UserPath, form: ExportFormat) -> Path:
    """Checks the file or folder to write before any long computation.

    Args:
        path: as given.
        form: the format that is written.

    Raises:
        OutputError: another suffix, a folder in place of a file, or a folder with something else in it.
    """
    if not form.marker:
        return check_suffix(path, [form.suffix])
    folder = output_folder(path)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; {form.name} is written as a folder. Name a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not form.is_format_of(folder):
        raise OutputError(f"{folder}: is not empty, and not an export to {form.name}. Name a new folder.")
    return folder


def output_folder(path: UserPath) -> Path:
    """The path of a folder to write; without "..", as new/../runs is an existing folder once new is created."""
    folder = user_path(path)
    return folder.resolve() if ".." in folder.parts else folder


@contextmanager
def whole_or_nothing(path: Path, *, is_folder: bool) -> Iterator[Path]:
    """A temporary file or folder beside ``path``, renamed to it at the end of the block, or removed if it raises.

    Raises:
        OutputError: it cannot be written.
    """
    created = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    done = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(path)
        partial.mkdir() if is_folder else partial.touch()
        yield partial
        _replace(partial, path)
        done = True
    except OSError as error:
        raise OutputError(f"{not_written(path, error)}, or name another one.") from error
    finally:
        with suppress(OSError):
            _remove(partial)
            for folder in [] if done else created:
                folder.rmdir()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _replace(partial: Path, path: Path) -> None:
    """Gives ``partial`` the name ``path``; a folder cannot replace one that is not empty, so that goes first."""
    if not path.is_dir():
        os.replace(partial, path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, old)
    os.rename(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def _clear_up(path: Path) -> None:
    """Removes what killed processes left of exports to ``path``; a folder that was being replaced gets its name back.

    Raises:
        OSError: the folder cannot be read, or something in it cannot be changed.
    """
    for found in list(path.parent.iterdir()):
        parts = re.fullmatch(r"\.(.+)\.(\d+)\.(partial|old)(.*)", found.name, re.DOTALL)
        if parts is None or is_process(int(parts[2])):
            continue
        is_old = parts[3] == "old"
        if parts[1] + parts[4] != path.name or (is_old and parts[4]):
            continue
        if is_old and not path.exists():
            os.rename(found, path)
        else:
            _remove(found)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
