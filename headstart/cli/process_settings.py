"""Settings of the command's process: warnings of other libraries, garbage collection and memory allocation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from headstart.import_effects import collection_paused


def quiet_libraries() -> None:
    """Silences warnings of other libraries, which users of a command cannot act on; errors are not affected."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")


@contextmanager
def importing() -> Iterator[None]:
    """Disables the garbage collector during imports, which saves 1 s of 4: it would scan all loaded objects repeatedly.

    Afterwards the allocator keeps freed memory for the next activations, see ``keep_freed_memory``.
    """
    with collection_paused():
        yield
        from headstart.engine.device import keep_freed_memory

        keep_freed_memory()
