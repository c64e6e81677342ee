"""Audit of the test set: how often its images were scored. Each score that leads to a choice weakens the test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from headstart.errors import RunError, WriteError
from headstart.files import writing_run
from headstart.progress import Progress

AUDIT_FILE = "test_uses.jsonl"


@dataclass(frozen=True)
class AuditEntry:
    """One evaluation on test images.

    Attributes:
        time: ISO 8601, UTC.
        by: "train", "evaluate", "compare", "export" or "verify".
        images: number of evaluated test images of the run.
        correct: number of correct predictions.
    """

    time: str
    by: str
    images: int
    correct: int


def record_test_score(folder: Path, by: str, *, images: int, correct: int, progress: Progress | None = None) -> None:
    """Adds an entry to the run's audit.

    Args:
        folder: of the run.
        by: see ``AuditEntry``.
        images: see ``AuditEntry``.
        correct: see ``AuditEntry``.
        progress: receives a warning if the audit cannot be written, as in the finished run of another user; without it,
            that is an error.

    Raises:
        WriteError: the audit cannot be written, and there is no ``progress``.
    """
    entry = AuditEntry(datetime.now(UTC).isoformat(timespec="seconds"), by, images, correct)
    file = folder / AUDIT_FILE
    try:
        with writing_run(folder, file), open(file, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(asdict(entry)) + "\n")
    except WriteError as error:
        if progress is None:
            raise
        progress.say(
            f"Warning: {file}: cannot be written ({error.__cause__}), so this score of the test images is not recorded."
        )


def read_audit(folder: Path) -> list[AuditEntry]:
    """All entries so far; none where the run has no audit.

    Raises:
        RunError: it is damaged.
    """
    file = folder / AUDIT_FILE
    if not file.is_file():
        return []
    try:
        return [AuditEntry(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged ({error}).") from error


def audit_text(entries: Sequence[AuditEntry]) -> str:
    """A sentence: "Test was scored once (train 2026-11-23)"; "" for no entries."""
    if not entries:
        return ""
    often = {1: "once", 2: "twice"}.get(len(entries), f"{len(entries):,} times")
    last = ", ".join(f"{entry.by} {entry.time[:10]}" for entry in entries[-3:])
    return f"Test was scored {often} ({'most recently: ' if len(entries) > 3 else ''}{last})"
