"""Journal of a session: each change is a line on the disk before it is acknowledged.

A line is a JSON document: a change, ``undo``, ``redo``, a change that is no step of undo (``quiet``), or an event such
as a measured accuracy. A torn last line, which a killed process leaves, was never acknowledged and is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from headstart.errors import LabelError, OutputError
from headstart.files import json_text, not_written, parsed_json
from headstart.labelling.label_state import LabelChange, LabelState


@final
class Journal:
    """An append-only file of changes, and the state that follows from them. Not thread-safe.

    Args:
        file: created with the first line.

    Attributes:
        state: after all lines.
        done: changes that can be undone, oldest first.
        undone: changes that can be redone, latest last.
        events: documents of ``note``, oldest first.

    Raises:
        LabelError: a line other than the last is damaged.
        OutputError: the file cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.state = LabelState()
        self.done: list[LabelChange] = []
        self.undone: list[LabelChange] = []
        self.events: list[dict[str, Any]] = []
        try:
            for number, line in enumerate(self._whole_lines(), start=1):
                self._replay(number, line)
            self._out = open(file, "ab", buffering=0)  # noqa: SIM115  # closed by ``close``
        except OSError as error:
            raise OutputError(f"{not_written(file, error)}, or choose another file with --labels.") from error

    def _whole_lines(self) -> Iterator[bytes]:
        """The lines of the file; a torn last line is cut off the file."""
        if not self.file.exists():
            return
        with open(self.file, "rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                file.truncate(end)
                os.fsync(file.fileno())
        yield from content[:end].splitlines()

    def _replay(self, number: int, line: bytes) -> None:
        try:
            self._follow(parsed_json(line))
        except (ValueError, LookupError, TypeError, AttributeError, LabelError) as error:
            raise LabelError(
                f"{self.file}, line {number}: damaged ({error}). Restore the file from a copy, or remove it: the "
                "table of labels beside it is read instead."
            ) from error

    def _follow(self, document: dict[str, Any]) -> None:
        """Updates the state by a line."""
        if not isinstance(document, dict):
            raise LabelError("not a change of labels")
        if "event" in document:
            self.events.append(document)
        elif "undo" in document:
            change = self.done.pop()
            self.state.apply(change.inverse())
            self.undone.append(change)
        elif "redo" in document:
            change = self.undone.pop()
            self.state.apply(change)
            self.done.append(change)
        else:
            change = LabelChange.of_json(document)
            self.state.apply(change)
            if not document.get("quiet"):
                self.done.append(change)
                self.undone.clear()

    def _append(self, document: dict[str, Any]) -> None:
        """Writes a line to the disk.

        Raises:
            OutputError: it cannot be written; the file is as before.
        """
        start = self._out.seek(0, os.SEEK_END)
        try:
            data = memoryview(json_text(document).encode() + b"\n")
            while data:
                data = data[self._out.write(data) :]
            os.fsync(self._out.fileno())
        except OSError as error:
            self._out.truncate(start)
            raise OutputError(f"{not_written(self.file, error)}, then repeat the last action.") from error

    def do(self, change: LabelChange, *, quiet: bool = False) -> None:
        """Writes and applies a change; a quiet one is no step of undo."""
        document = change.as_json() | ({"quiet": True} if quiet else {})
        self._append(document)
        self._follow(document)

    def undo(self) -> LabelChange:
        """Undoes the last change and returns it; ``done`` must not be empty."""
        change = self.done[-1]
        self._append({"undo": change.text})
        self._follow({"undo": change.text})
        return change

    def redo(self) -> LabelChange:
        """Repeats the change that was undone last and returns it; ``undone`` must not be empty."""
        change = self.undone[-1]
        self._append({"redo": change.text})
        self._follow({"redo": change.text})
        return change

    def note(self, event: dict[str, Any]) -> None:
        """Writes a document with the key "event", which changes no label."""
        self._append(event)
        self._follow(event)

    def close(self) -> None:
        """Closes the file."""
        self._out.close()
