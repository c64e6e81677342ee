"""Settings of the command's own process: quiet libraries, quick imports, freed memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from headstart.import_effects import collection_paused


def quiet_libraries() -> None:
    """Silences remarks of other libraries, which the user of a command cannot act on; errors are raised as ever."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")


@contextmanager
def importing() -> Iterator[None]:
    """Imports without the garbage collector, which would search all loaded objects again and again: 1 s of 4.

    Memory that the process frees is kept for its next activations from then on, see ``keep_freed_memory``.
    """
    with collection_paused():
        yield
        from headstart.engine.device import keep_freed_memory

        keep_freed_memory()
