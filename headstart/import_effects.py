"""Imports of other libraries without their side effects on the process.

scikit-learn sets ``KMP_DUPLICATE_LIB_OK`` and ``KMP_INIT_AT_FORK`` and draws from Python's random generator when it is
imported, tensorboardX sets ``CRC32C_SW_MODE``, PyTorch's compiler ``TORCHINDUCTOR_CACHE_DIR``. A library that imports
Headstart and then starts other programs would pass these on to them.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NEEDED_LATER = () if sys.platform == "linux" else ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
"""Variables that LLVM's OpenMP reads after the import. Wheels for Linux contain GNU's, which does not read them."""


@contextmanager
def restored_after_import() -> Iterator[None]:
    """Context for imports: environment variables and Python's random generator are as before when it is left."""
    environment, generator = dict(os.environ), random.getstate()
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys() - set(_NEEDED_LATER):
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if random.getstate() != generator:
            random.setstate(generator)
