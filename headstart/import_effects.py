"""Imports of other libraries without their side effects on the process.

scikit-learn sets ``KMP_DUPLICATE_LIB_OK`` and ``KMP_INIT_AT_FORK`` and draws from Python's random generator when it is
imported, tensorboardX sets ``CRC32C_SW_MODE``, PyTorch's compiler ``TORCHINDUCTOR_CACHE_DIR``. A library that imports
Headstart and then starts other programs would pass these on to them.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NEEDED_LATER = () if sys.platform == "linux" else ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""Variables that LLVM's OpenMP reads after the import. Wheels for Linux contain GNU's, which does not read them."""


scoped_filters: list[object] = []
"""Warning filters that blocks in other threads have added for their own time, see ``concurrency.ignored_warnings``."""


@contextmanager
def restored_after_import() -> Iterator[None]:
    """Context for imports; afterwards environment variables, random generator and warning filters are as before."""
    environment, generator, filters = dict(os.environ), random.getstate(), list(warnings.filters)
    try:
        yield
    finally:
        _remove_filters_except(filters)
        for name in os.environ.keys() - environment.keys() - set(_NEEDED_LATER):
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if random.getstate() != generator:
            random.setstate(generator)


def _remove_filters_except(before: list[Any]) -> None:
    kept = {id(entry) for entry in (*before, *scoped_filters)}
    added = [entry for entry in warnings.filters if id(entry) not in kept]
    for entry in added:  # SciPy and scikit-learn show some of their own warnings always
        place = next((i for i, other in enumerate(warnings.filters) if other is entry), None)
        if place is not None:
            del warnings.filters[place]  # type: ignore[attr-defined]  # typeshed calls it a sequence


def import_quietly(name: str) -> Any:
    """A module of another library, imported at its first use and without side effects (``restored_after_import``)."""
    if name in sys.modules:
        return importlib.import_module(name)  # waits for a thread that is importing it
    with restored_after_import(), collection_paused():
        return importlib.import_module(name)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Context for imports, which make many objects that stay: without garbage collection they take an eighth less."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
