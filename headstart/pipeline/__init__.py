"""Pipeline: the steps of a training run, from images to a finished run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.pipeline.custom_loop import Workbench as Workbench
    from headstart.pipeline.train_events import train_events as train_events

_MODULES = {
    "Workbench": "headstart.pipeline.custom_loop",
    "train_events": "headstart.pipeline.train_events",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
