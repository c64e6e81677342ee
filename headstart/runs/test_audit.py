"""How often a run's test images were looked at: each look at them that leads to a choice makes them less of a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from headstart.errors import RunError, WriteError
from headstart.files import writing_run
from headstart.progress import Progress

USES_FILE = "test_uses.jsonl"


@dataclass(frozen=True)
class Use:
    """A look at test images.

    Attributes:
        time: ISO 8601, UTC.
        by: "train", "evaluate", "compare", "export" or "verify".
        images: of the run's test that were scored.
        correct: of them.
    """

    time: str
    by: str
    images: int
    correct: int


def note_use(folder: Path, by: str, *, images: int, correct: int, progress: Progress | None = None) -> None:
    """Adds a line to the run's list.

    Args:
        folder: of the run.
        by: see ``Use``.
        images: see ``Use``.
        correct: see ``Use``.
        progress: told where the list cannot be written, as in the finished run of another user; that is an error where
            it is not given.

    Raises:
        WriteError: the list cannot be written, and there is no ``progress``.
    """
    use = Use(datetime.now(UTC).isoformat(timespec="seconds"), by, images, correct)
    file = folder / USES_FILE
    try:
        with writing_run(folder, file), open(file, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(asdict(use)) + "\n")
    except WriteError as error:
        if progress is None:
            raise
        progress.say(
            f"Warning: {file}: cannot be written ({error.__cause__}): this use of the test images is not noted."
        )


def read_uses(folder: Path) -> list[Use]:
    """Every use so far; none where the run has no list.

    Raises:
        RunError: it is damaged.
    """
    file = folder / USES_FILE
    if not file.is_file():
        return []
    try:
        return [Use(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged ({error}).") from error


def uses_text(uses: Sequence[Use]) -> str:
    """In words: "Test was scored once (train, 2026-11-23)"; "" for none."""
    if not uses:
        return ""
    often = {1: "once", 2: "twice"}.get(len(uses), f"{len(uses):,} times")
    last = ", ".join(f"{use.by} {use.time[:10]}" for use in uses[-3:])
    return f"Test was scored {often} ({'the last: ' if len(uses) > 3 else ''}{last})"
