"""ONNX Runtime without telemetry, imported when it is first used. All other modules import it from here.

Wheels for Linux from version 1.32 on collect usage data and send it from a thread. Headstart sends nothing; and a
forked child of such a process hangs at exit, because it waits for a thread that it does not have. The switch is an
environment variable that is read once, at the import. A program that imports onnxruntime first decides for itself.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ..extras import version_of

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["new_session", "onnxruntime", "onnxruntime_version"]

_SWITCH = "ORT_DISABLE_TELEMETRY"
_SESSIONS: WeakSet[onnxruntime.InferenceSession] = WeakSet()
"""Sessions of this process and, in a forked child, of its parent."""


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


def new_session(model: bytes | Path, *, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU that logs nothing.

    Args:
        model: an ONNX file or its content.
        threads: of one run; 0 for the number of processors.
    """
    runtime = __getattr__("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    session: onnxruntime.InferenceSession = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    _SESSIONS.add(session)
    return session


def _keep_sessions() -> None:
    """Keeps inherited sessions alive in a forked child: destroying one waits forever for threads of the parent."""
    for session in list(_SESSIONS):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions)
