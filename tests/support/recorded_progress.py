"""A progress that records messages."""

from __future__ import annotations

from headstart.progress import SilentProgress


class RecordedProgress(SilentProgress):
    """Keeps the messages in ``said``; shows nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
