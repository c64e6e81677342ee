"""Training: the recipe of options, heads, linear probes, fine-tuning and its ladder of rungs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.training.ladder import RungResult as RungResult
    from headstart.training.recipe import Recipe as Recipe

_MODULES = {
    "Recipe": "headstart.training.recipe",
    "RungResult": "headstart.training.ladder",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
