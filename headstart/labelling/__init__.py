"""Labels for unlabelled images: a session with a journal, queues, and a classifier that is refitted meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.labelling.session import LabellingSession as LabellingSession

_MODULES = {"LabellingSession": "headstart.labelling.session"}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
