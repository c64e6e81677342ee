"""Opens the folder of an exported page with ONNX Runtime alone. Runs outside Headstart: imports nothing of it.

The page itself, and ONNX Runtime Web, need a browser: they are compared with what was written, by their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
from collections.abc import Callable

import numpy

DOCUMENT = "headstart-web.json"
"""Name of the document that describes the folder."""


def open_file(path: str) -> tuple[str, Callable[[numpy.ndarray], list[numpy.ndarray]]]:
    """See ``onnx_reader.open_file``; ``path`` is the folder."""
    try:
        with open(os.path.join(path, DOCUMENT), encoding="utf-8") as opened:
            about = json.load(opened)
        files, model, metadata = about["files"], about["model_file"], about["metadata"]
        for name, expected in files.items():
            check(path, name, expected["size"], expected["sha256"])
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{DOCUMENT} is damaged, or not written by headstart export ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{DOCUMENT} is damaged ({error})") from error
    opener = runpy.run_path(os.path.join(os.path.dirname(__file__), "onnx_reader.py"))["open_file"]
    text, run = opener(os.path.join(path, model))
    if json.loads(text) != metadata:
        raise ValueError(f"{DOCUMENT} describes another model than {model}. Export again")
    return text, run


def check(folder: str, name: str, size: int, sha256: str) -> None:
    """Compares a file of the folder with what was written.

    Raises:
        ValueError: it is missing or differs.
    """
    try:
        with open(os.path.join(folder, name), "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise ValueError(f"{name} is missing. Export again") from error
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{name} is damaged or was changed. Export again")
