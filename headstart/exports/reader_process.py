"""An exported file that is opened by a process of another program: answers depend on the file alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO, Any, Final, Self, final

import numpy as np
import numpy.typing as npt

from headstart.errors import ExportError
from headstart.exports.metadata import ExportMetadata
from headstart.exports.readers import answer_frames
from headstart.exports.readers.answer_frames import receive, send_arrays

READERS: Final = Path(answer_frames.__file__).parent


@final
class OpenedExport:
    """An exported file or folder that a new process has opened; nothing of Headstart is imported there.

    Args:
        file: the file or folder.
        reader: name of a program of ``exports.readers``.
        interpreter: the Python that runs it; this one if "".

    Attributes:
        metadata: of the file.
        seconds: from the start of the process until the file was open.

    Raises:
        ExportError: the file cannot be used, or the process fails.
    """

    def __init__(self, file: Path, reader: str, interpreter: str = "") -> None:
        self._file = file
        started = time.perf_counter()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        program = [interpreter or sys.executable, "-P", answer_frames.__file__, str(READERS / reader)]
        self._process = subprocess.Popen(
            [*program, str(file.absolute())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self.close = weakref.finalize(self, _end, self._process, self._errors)
        found = self._answer()
        self.seconds = time.perf_counter() - started
        if "error" in found:
            self.close()
            raise ExportError(f"{file}: {found['error']}.")
        self.metadata = ExportMetadata.read(str(found["metadata"]), file)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """(N, H, W, 3) uint8 -> (N, classes) probabilities, and (N,) outlier scores if the file has them.

        Raises:
            ExportError: the process has failed.
        """
        assert self._process.stdin is not None
        try:
            send_arrays(self._process.stdin, [pixels])
        except OSError as error:
            raise self._failed() from error
        found: list[npt.NDArray[np.float32]] = self._answer()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        try:
            return receive(self._process.stdout)
        except (EOFError, ValueError) as error:
            raise self._failed() from error

    def _failed(self) -> ExportError:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines() or [f"status {status}"]
        self.close()
        return ExportError(f"{self._file}: cannot be run in a separate process ({said[-1]}).")


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Ends a process that waits for pixels, or runs."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # what is not written yet cannot be
            pipe.close()
    process.kill()
    process.wait()
    errors.close()
