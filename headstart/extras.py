"""Optional dependencies (extras): a missing one is an error with the command that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from .errors import MissingExtra

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "export": ("onnxscript",),
    "gs": ("gcsfs",),
    "heif": ("pillow_heif",),
    "http": ("aiohttp",),
    "openvino": ("openvino", "nncf", "onnxscript"),
    "parquet": ("pyarrow",),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "serve": ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn", "h11"),
    "tensorboard": ("tensorboardX",),
}
"""Extra -> modules that it installs."""

DISTRIBUTION: Final = __name__.partition(".")[0].replace("_", "-")
"""What is installed, with its extras: headstart, or headstart-runtime, which contains this module too."""


@cache
def version_of(distribution: str) -> str:
    """The version of an installed distribution; its metadata are read once.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return importlib.metadata.version(distribution)


def is_installed(extra: str) -> bool:
    """Whether all modules of an extra are installed; imports none of them."""
    return all(importlib.util.find_spec(module) is not None for module in EXTRAS[extra])


def install_command(extra: str) -> str:
    """The command that installs an extra: ``pip install "headstart[serve]"``."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def require_extra(extra: str, purpose: str) -> None:
    """Checks that the modules of an extra are installed, without importing them.

    Args:
        extra: a key of ``EXTRAS``.
        purpose: what needs it, as the subject of the message: "the server".

    Raises:
        MissingExtra: a module is not installed; the message has the command that installs it.
    """
    for module in EXTRAS[extra]:
        if importlib.util.find_spec(module) is None:
            raise _missing(extra, purpose, module)


@contextmanager
def importing_extra(extra: str, purpose: str) -> Iterator[None]:
    """A block whose imports need an extra; arguments and errors as for ``require_extra``."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS[extra]:
            raise
        raise _missing(extra, purpose, module) from error


def _missing(extra: str, purpose: str, module: str) -> MissingExtra:
    return MissingExtra(f"{purpose} needs {module}, which is not installed. Run: {install_command(extra)}")
