"""Checkpoints: a JSON document and tensors in one safetensors file, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from headstart.errors import RunError
from headstart.files import write_atomically, writing_run


def save_checkpoint(path: Path, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes a checkpoint.

    Raises:
        WriteError: the disk is full, or the folder cannot be written. An older checkpoint of this name stays intact.
    """
    data = save({name: t.detach().contiguous() for name, t in tensors.items()}, {"headstart": json.dumps(document)})
    with writing_run(path.parent.parent, path):
        write_atomically(path, data)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Reads a checkpoint; None if it does not exist.

    Raises:
        RunError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            return json.loads(opened.metadata()["headstart"]), tensors
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: damaged checkpoint ({error}). Remove the file; resuming then repeats that part of the run."
        ) from error
