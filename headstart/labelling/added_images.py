"""Images that are added to an open session: listed at once, and read and computed in the background.

Such an image comes from outside the source: a trained model classified it wrongly, or it was corrected in ``serve``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import final

from headstart.errors import HeadstartError
from headstart.labelling.frozen_pass import PassProgress, PassResult, PassStopped
from headstart.labelling.image_list import ImageList
from headstart.labelling.journal import Journal

Compute = Callable[[PassResult, Sequence[str], PassProgress], PassResult]
"""Result of all other images, and addresses of those that follow -> the result of both; see ``FrozenPass.joined``."""


def added_addresses(journal: Journal) -> list[str]:
    """Addresses of the images that earlier sessions added."""
    return [event["address"] for event in journal.events if event["event"] == "added"]


@final
class AddedImages:
    """Takes images from outside the source, and computes them in a thread while there are any.

    The caller of ``begin``, ``add`` and ``number_of`` holds the lock of the session; that of ``close`` and ``wait``
    does not.

    Args:
        images: of the session.
        journal: remembers the images for the next start.
        compute: the pass over added images.
        join: receives a result with more images, from the thread.
    """

    def __init__(
        self,
        images: ImageList,
        journal: Journal,
        *,
        compute: Compute,
        join: Callable[[PassResult], None],
    ) -> None:
        self._images, self._journal = images, journal
        self._compute, self._join = compute, join
        self._result: PassResult | None = None
        self._keys: dict[bytes, int] = {}
        self._progress = PassProgress(lambda: None)
        self._idle = threading.Condition()
        self._is_waiting = self._is_closed = False
        self._thread: threading.Thread | None = None

    def begin(self, result: PassResult) -> None:
        """Takes the result of the pass; images may be added from now on."""
        self._result = result

    def number_of(self, key: bytes) -> int | None:
        """The number of the image with this content hash; None if there is none, or it is not read yet."""
        keys = [] if self._result is None else self._result.keys
        return keys.index(key) if key in keys else self._keys.get(key)

    def add(self, address: str, key: bytes) -> int:
        """Lists an image; returns its number. It is computed soon."""
        self._journal.note({"event": "added", "address": address})
        (count,) = self._images.extend([address])
        self._keys[key] = count - 1
        with self._idle:
            self._is_waiting = True
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="headstart-label-added", daemon=True)
                self._thread.start()
        return count - 1

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until all images are computed; False if that takes longer than ``timeout`` seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: self._thread is None, timeout)

    def close(self, timeout: float) -> None:
        """Ends the thread with its next image; what it computed is in the cache."""
        self._progress.stop()
        with self._idle:
            self._is_closed = True
        self.wait(timeout)

    def _run(self) -> None:
        while self._has_more():
            # What fails is tried again with the next image, or at the next start.
            with contextlib.suppress(PassStopped, HeadstartError, OSError, MemoryError, RuntimeError):
                assert self._result is not None
                addresses = self._images.addresses[len(self._result.keys) : len(self._images)]
                self._result = self._compute(self._result, addresses, self._progress)
                self._join(self._result)

    def _has_more(self) -> bool:
        """Whether an image was added since the last call; if not, the thread ends."""
        with self._idle:
            more, self._is_waiting = self._is_waiting and not self._is_closed, False
            if not more:
                self._thread = None
                self._idle.notify_all()
            return more
