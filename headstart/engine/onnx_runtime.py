"""ONNX Runtime, imported without its telemetry. All other modules import it from here.

Wheels for Linux from 1.32 on collect usage data and send them from a thread of their own. Headstart sends nothing; and
a forked child of such a process hangs when it ends, since it waits for a thread that it does not have. The switch is an
environment variable that is read once, at the import. A program that imports onnxruntime first decides for itself.
"""

from __future__ import annotations

import os

_SWITCH = "ORT_DISABLE_TELEMETRY"

_before = os.environ.get(_SWITCH)
os.environ.setdefault(_SWITCH, "1")
try:
    import onnxruntime
finally:
    if _before is None:
        del os.environ[_SWITCH]

__all__ = ["onnxruntime"]
