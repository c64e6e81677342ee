"""Every exception that Headstart raises on purpose.

HeadstartError
├── DataError            a folder or table that cannot be used as it is
│   ├── InputError       paths, labels or weights that a scikit-learn estimator was given; a ValueError as well
│   ├── UnreadableImage  one file that is no usable image (``path``, ``reason``)
│   └── LargeImage       one that would take more memory than it may at that moment (``pixels``)
├── WeightsError         pretrained weights that cannot be had or do not fit
├── ModelFileError       a model file that is damaged, foreign, or from a newer version
├── ExportError          a model that cannot be exported, or an exported file that differs from it or cannot be used
├── RunError             a run folder that cannot be read or written
│   └── WriteError       a file of a run that cannot be written: the disk is full, say
├── TrainingError        training that went wrong: a frozen weight changed, or the loss is not finite
│   └── Diverged         fine-tuning whose loss is not a finite number any more
├── CacheError           the cache on disk cannot be read or written
├── HubError             a model that cannot be fetched from a hub, or shared there
├── ServerError          a server that cannot be started
├── OutputError          a file that the user named cannot be written
└── OptionError          an option with a value that it cannot take

Each message says what was found, what was expected and what to do. The command line prints it as one line and
exits with status 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadstartError(Exception):
    """Base of every error that Headstart raises on purpose."""


class DataError(HeadstartError):
    """A folder, a table or the images in it cannot be used as they are."""


class InputError(DataError, ValueError):
    """Paths, labels or sample weights given to a scikit-learn estimator cannot be used.

    A ``ValueError`` as well, which is what scikit-learn's conventions ask of estimators.
    """


class UnreadableImage(DataError):
    """One file is not a usable image.

    Attributes:
        path: the file as it was named, or ``"<bytes>"``.
        reason: why, in a few words, for a table or a report.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class LargeImage(DataError):
    """One picture would take more memory, while it is decoded, than it may at that moment.

    Attributes:
        pixels: that it takes the memory of.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__(f"{pixels:,} pixels are more than may be decoded at once.")
        self.pixels = pixels


class WeightsError(HeadstartError):
    """Pretrained weights cannot be had, or do not fit the architecture."""


class ModelFileError(HeadstartError):
    """A model file is damaged, foreign, or from a newer version of the format."""


class ExportError(HeadstartError):
    """A model cannot be exported, or an exported file differs from its model or cannot be used."""


class RunError(HeadstartError):
    """A run folder cannot be read, or must not be written to."""


class WriteError(RunError):
    """A file of a run cannot be written, because the disk is full or read-only; the run can be resumed."""


class TrainingError(HeadstartError):
    """Training went wrong: a frozen weight changed, or the loss is not a finite number."""


class Diverged(TrainingError):
    """The loss of fine-tuning is not a finite number any more."""


class CacheError(HeadstartError):
    """The cache on disk cannot be read or written."""


class OutputError(HeadstartError):
    """A file that the user named cannot be written, or has an ending that is not known."""


class OptionError(HeadstartError):
    """An option has a value that it cannot take."""


class HubError(HeadstartError):
    """A model cannot be fetched from a hub, or shared there."""


class ServerError(HeadstartError):
    """A server cannot be started where, or with what, was asked for."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for a sentence of ours, without its full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(".")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question for the end of a message, " Did you mean blocks.5?"; "" where no name is similar."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
