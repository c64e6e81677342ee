"""Content of model files, to compare models of equal images under different names."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open


def content_without_name(file: Path) -> bytes:
    """Tensors and document of a model file, without the name of the data and the hash, which depends on it."""
    with safe_open(file, "numpy") as opened:
        document = json.loads(opened.metadata()["headstart"])
        tensors = b"".join(name.encode() + opened.get_tensor(name).tobytes() for name in sorted(opened.keys()))
    del document["data"]["name"], document["sha256"]
    return tensors + json.dumps(document).encode()
