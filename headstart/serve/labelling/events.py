"""Event stream of a labelling session: the state document whenever it changes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

MIN_INTERVAL: Final = 0.25
"""Minimum seconds between two events of one page."""

POLL_SECONDS: Final = 0.5
"""Maximum seconds until a change of the training is noticed, which the session does not report."""

KEEP_ALIVE_SECONDS: Final = 10.0
"""Seconds without an event after which a comment is sent; a page that has gone is then noticed."""


async def state_events(
    state: Callable[[], dict[str, Any]],
    wait_change: Callable[[int, float], int],
    is_stopping: Callable[[], bool],
) -> AsyncIterator[bytes]:
    """Server-sent events ``state``.

    Args:
        state: the state document.
        wait_change: waits for a change after the given number, for some seconds, and returns the next number.
        is_stopping: whether the server is about to stop; the stream then ends.
    """
    sent, sent_at, seen = "", 0.0, -1
    while not is_stopping():
        document = await run_in_threadpool(state)
        text = json.dumps(document)
        if text != sent:
            sent, sent_at = text, time.monotonic()
            yield b"event: state\ndata: " + text.encode() + b"\n\n"
            await asyncio.sleep(MIN_INTERVAL)
        elif time.monotonic() - sent_at > KEEP_ALIVE_SECONDS:
            sent_at = time.monotonic()
            yield b": alive\n\n"
        seen = await run_in_threadpool(wait_change, seen, POLL_SECONDS)
