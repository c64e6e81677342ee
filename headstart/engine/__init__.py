"""Inference engines that run the frozen backbone: PyTorch and ONNX Runtime with one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.lazy import lazy_names

if TYPE_CHECKING:
    from headstart.engine.device import keep_freed_memory as keep_freed_memory

_MODULES = {
    "keep_freed_memory": "headstart.engine.device",
}

__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)
