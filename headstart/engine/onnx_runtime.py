"""ONNX Runtime without telemetry, imported when it is first used. All other modules import it from here.

Wheels for Linux from version 1.32 on collect usage data and send it from a thread. Headstart sends nothing; and a
forked child of such a process hangs at exit, because it waits for a thread that it does not have. The switch is an
environment variable that is read once, at the import. A program that imports onnxruntime first decides for itself.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

from headstart.extras import version_of

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["onnxruntime", "onnxruntime_version"]

_SWITCH = "ORT_DISABLE_TELEMETRY"


def __getattr__(name: str) -> Any:
    if name != "onnxruntime":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    is_set = _SWITCH in os.environ
    os.environ.setdefault(_SWITCH, "1")
    try:
        globals()[name] = importlib.import_module(name)
    finally:
        if not is_set:
            del os.environ[_SWITCH]
    return globals()[name]


def onnxruntime_version() -> str:
    """The installed version, without importing the library if its metadata can be read."""
    try:
        return version_of("onnxruntime")
    except PackageNotFoundError:  # another distribution, such as onnxruntime-gpu
        return str(__getattr__("onnxruntime").__version__)
