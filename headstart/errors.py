"""Errors: every exception that Headstart raises on purpose, one tree below ``HeadstartError``.

Each message says what happened, where, and what to do. The command line prints it as one line and exits with status 1.
``docs/errors.md`` lists them; ``scripts/generate_errors.py`` writes it from the docstrings here.
"""

from __future__ import annotations

from collections.abc import Iterable


class HeadstartError(Exception):
    """Base class of all errors below.

    Remedy: catch it to handle every error that Headstart raises on purpose; its message is written for users.

    Examples:
        >>> try:
        ...     hs.train("no-such-folder/")
        ... except hs.HeadstartError as error:
        ...     print(error)
        no-such-folder: no such folder or table.
    """


class DataError(HeadstartError):
    """A folder or a table does not exist, or its images or labels cannot be used.

    Remedy: correct the files that the message names; ``headstart check DATA`` lists everything that is wrong.
    """


class InputError(DataError, ValueError):
    """The paths, labels or sample weights given to a scikit-learn estimator cannot be used. Also a ``ValueError``.

    Remedy: pass a list of paths and one label per path, without missing values.
    """


class UnreadableImage(DataError):
    """One file is not an image that can be read.

    Remedy: replace or remove the file. Training leaves such files out; a prediction has the reason as its ``error``.

    Attributes:
        path: the file as it was named, or ``"<bytes>"``.
        reason: why it cannot be read, in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class LargeImage(DataError):
    """Decoding one image takes more memory than is allowed.

    Remedy: increase the limit on pixels, or send a smaller image.

    Attributes:
        pixels: number of pixels that the image takes the memory of.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__(f"{pixels:,} pixels are more than the limit for decoding.")
        self.pixels = pixels


class SourceError(HeadstartError):
    """Object storage or a web server with images cannot be reached, or refuses access.

    Raised after some attempts, in which nothing was read. A single missing object is an ``UnreadableImage`` instead.

    Remedy: check the network, the address and the credentials that the message names, then run the command again.
    """


class WeightsError(HeadstartError):
    """Pretrained weights cannot be loaded or downloaded, or do not fit the architecture.

    Remedy: check the network, or pass a file of the same architecture with ``weights``.
    """


class LicenseError(HeadstartError):
    """The licence of pretrained weights restricts their use, and was not accepted.

    Remedy: read the licence; if your use is allowed, give ``--accept-license`` (``accept_license``). Otherwise choose
    weights with a permissive licence.
    """


class ModelFileError(HeadstartError):
    """A model file is missing, damaged, not written by Headstart, or of a newer format; or cannot be written.

    Remedy: copy the file again, install a newer Headstart, or name another file.
    """


class ExportError(HeadstartError):
    """A model cannot be exported, or an exported file differs from its model or cannot be used.

    Remedy: the message says what differs; try the other format, or export without int8.
    """


class RunError(HeadstartError):
    """A folder is not a run folder, is damaged, not empty or in use; or data or software of a stopped run have changed.

    Remedy: name another folder with ``out``, or restore what the message says has changed.
    """


class WriteError(RunError):
    """A file of a run cannot be written: the disk is full or read-only.

    Remedy: free some space, then ``headstart train --resume RUN``; nothing that was finished is lost.
    """


class TrainingError(HeadstartError):
    """Training went wrong: a frozen weight changed, or the loss is not finite.

    Remedy: report a changed frozen weight as a bug; for the loss, see ``Diverged``.
    """


class Diverged(TrainingError):
    """The loss of fine-tuning is not finite (NaN or infinity).

    Remedy: lower the learning rate with ``lr``.
    """


class CacheError(HeadstartError):
    """The cache on disk cannot be read or written.

    Remedy: set ``HEADSTART_CACHE`` to a writable folder, or run ``headstart cache --verify``.
    """


class OutputError(HeadstartError):
    """A file that the user named cannot be written, or its extension is not supported.

    Remedy: name a file in a writable folder, with an extension that the message lists.
    """


class OptionError(HeadstartError):
    """An option or argument has an invalid value, or two options contradict each other.

    Remedy: choose a value from the range or the list in the message; see the page on options.
    """


class HubError(HeadstartError):
    """A model cannot be downloaded from or uploaded to the Hugging Face hub.

    Remedy: check the address and the network; run ``hf auth login`` for private repositories and for uploads.
    """


class ServerError(HeadstartError):
    """The server cannot be started: the port is in use, or two options cannot be combined.

    Remedy: choose another port with ``--port``.
    """


class WorkerError(HeadstartError):
    """Worker processes or machines were lost again and again while they computed the same images.

    Remedy: use fewer workers, or look for the image that the message names; the same command continues the work.
    """


class LabelError(HeadstartError):
    """Files of labels are in use by another labelling session, or damaged.

    Remedy: open the address of the other session, which the message names, or stop it; restore a damaged file.
    """


class StaleAction(LabelError):
    """An action on labels does not fit them any more: another window has changed the class or the images meanwhile.

    Remedy: load the page again, and repeat the action there.
    """


class MissingExtra(HeadstartError, ImportError):
    """An optional dependency is not installed. Also an ``ImportError``.

    Remedy: run the command in the message, such as ``pip install "headstart[serve]"``.
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 160 characters, without its full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(".")


def suggestion(name: str, choices: Iterable[str]) -> str:
    """A question to append to a message: " Did you mean blocks.5?"; "" if no choice is similar."""
    import difflib  # only error messages need it

    near = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {near[0]}?" if near else ""
