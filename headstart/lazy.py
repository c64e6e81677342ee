"""Lazy public names: what a package exports is imported when it is first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from headstart.deferred_compiler import compiler_deferred
from headstart.extras import importing_extra
from headstart.import_effects import collection_paused, restored_after_import


def lazy_names(
    package: str, modules: Mapping[str, str], moved: Mapping[str, str] | None = None, *, extra: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported on first use (PEP 562).

    Args:
        package: full name of the package.
        modules: exported name -> full name of the module that defines it.
        moved: name that was exported before -> its new place, for the error message.
        extra: extra that the package needs; "" for none.

    Returns:
        What the package's ``__init__.py`` assigns to ``__getattr__``, ``__dir__`` and ``__all__``.
    """
    moved = moved or {}

    def get(name: str) -> Any:
        if name in moved:
            raise AttributeError(f"{package}.{name} is now {moved[name]}.")
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        extra_named = importing_extra(extra, f"{package}.{name}") if extra else nullcontext()
        with extra_named, restored_after_import(), collection_paused(), compiler_deferred():
            value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(modules), sorted(modules)
