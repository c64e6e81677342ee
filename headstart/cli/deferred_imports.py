"""PyTorch's compiler, imported when it is first used rather than when it is first named.

torchvision imports ``torch._dynamo`` for one question, timm and ``torch.optim`` to exempt functions from it: with what
it imports in turn a quarter of every command's start (LOG.md), for a compiler that few commands run. Until something
else of it is asked for, a stand-in answers; then the compiler is there, as if it had been from the beginning.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILITIES = "torch._dynamo.utils"
STAND_INS = (COMPILER, UTILITIES)


def defer_compiler() -> None:
    """From now on the compiler is imported when it is first used; nothing changes where it is there already.

    For a process that is one's own: a program that imports Headstart decides for itself.
    """
    if COMPILER not in sys.modules and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_import(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Finds the stand-ins, and the compiler's own modules once one is asked for that has none."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname in STAND_INS:
            return ModuleSpec(fullname, self, is_package=fullname == COMPILER)
        if not fullname.startswith(f"{COMPILER}."):
            return None
        _import(COMPILER)
        there = sys.modules.get(fullname)
        return importlib.util.find_spec(fullname) if there is None else ModuleSpec(fullname, _Imported(there))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        if spec.name == COMPILER:
            module.disable = _disable  # type: ignore[attr-defined]
        else:
            module.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _Imported(Loader):
    """A module that was imported while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


_FINDER = _Finder()

_exempt: list[_Exempt] = []
"""Functions that the compiler is to leave alone, to be told once it is there."""


def _import(name: str) -> ModuleType:
    """The compiler's own module of this name; the stand-ins are gone."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
        for stand_in in STAND_INS:
            sys.modules.pop(stand_in, None)
        compiler = importlib.import_module(COMPILER)
        while _exempt:
            _exempt.pop().tell(compiler)
    return importlib.import_module(name)


class _Exempt:
    """What ``torch._dynamo.disable`` was asked for before the compiler was there."""

    def __init__(self, fn: Callable[..., Any], recursive: bool, reason: str | None, wrapping: bool) -> None:
        self.run, self.recursive, self.reason, self.wrapping = fn, recursive, reason, wrapping

    def tell(self, compiler: ModuleType) -> None:
        self.run = compiler.disable(self.run, self.recursive, reason=self.reason, wrapping=self.wrapping)


def _disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True
) -> Any:
    """``torch._dynamo.disable``; of a plain function, the compiler is told when it is there."""
    if fn is None:
        return functools.partial(_disable, recursive=recursive, reason=reason, wrapping=wrapping)
    if not isinstance(fn, FunctionType):
        return _import(COMPILER).disable(fn, recursive, reason=reason, wrapping=wrapping)
    exempt = _Exempt(fn, recursive, reason, wrapping)
    _exempt.append(exempt)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return exempt.run(*args, **kwargs)

    return call


def _is_compile_supported(device_type: Any) -> Any:
    return _import(UTILITIES).is_compile_supported(device_type)
