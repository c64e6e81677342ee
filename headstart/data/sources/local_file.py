"""Reading one file of this machine."""

from __future__ import annotations

from ...errors import UnreadableImage


def read_local_file(path: str) -> bytes:
    """The content of a file.

    Raises:
        UnreadableImage: it does not exist, is a folder, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UnreadableImage(path, reason_of(error)) from error
    except ValueError as error:  # a zero byte, or an unpaired surrogate
        raise UnreadableImage(path, "not a path that a file can have") from error


def reason_of(error: OSError) -> str:
    """Why a file cannot be read, in a few words."""
    return (error.strerror or str(error)).lower()
