"""Worker processes of a process, found in /proc."""

from __future__ import annotations

from pathlib import Path


def workers_of(process: int) -> list[int]:
    """The worker processes that a process has started through multiprocessing, in the order of their numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_text()
        except (OSError, ValueError, IndexError):
            continue
        if parent == process and "spawn_main" in words:
            found.append(int(entry.name))
    return sorted(found)
