"""A lock file that a process holds while it works in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from headstart.errors import HeadstartError


@contextmanager
def lock_held(file: Path, taken: HeadstartError, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock file while the block runs. A file system without locks locks nothing.

    Args:
        file: of the lock; the system gives it up if this process is killed.
        taken: raised if another process holds it.
        wait: seconds to wait for it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(file, timeout=wait))
        except Timeout:
            raise taken from None
        except (OSError, NotImplementedError):
            pass
        yield
