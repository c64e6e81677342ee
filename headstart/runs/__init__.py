"""Runs: the run folder, its log and events, live status and the audit of test-set use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.runs.events import Event as Event
    from headstart.runs.folder import Run as Run
    from headstart.runs.folder import load_run as load_run

_MODULES = {
    "Event": "headstart.runs.events",
    "Run": "headstart.runs.folder",
    "load_run": "headstart.runs.folder",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
