"""Lazy import of PyTorch's compiler: a stand-in for ``torch._dynamo`` until it is used.

torchvision, timm and ``torch.optim`` name ``torch._dynamo`` when they are imported: to ask whether a device can be
compiled for, and to exempt functions from compilation; a step of an optimizer breaks the graph, which does nothing
outside compiled code. What the compiler imports in turn takes a quarter of a command's start, and few commands compile
anything. The stand-in answers these three; any other use imports the compiler, and then everything is as if it had been
imported from the beginning.

This is the only place that touches ``torch._dynamo``; tests/test_deferred_compiler.py names what it relies on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
UTILITIES = "torch._dynamo.utils"
STAND_INS = (COMPILER, UTILITIES)


def defer_compiler() -> None:
    """Defers the import of the compiler to its first use; does nothing if it is imported already.

    For the process of a command. The library defers it only while code runs that names it, see ``compiler_deferred``.
    """
    if COMPILER not in sys.modules and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)  # without the ABC, whose import takes 40 ms


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """Context for code that names the compiler but does not use it: imports, shape inference. It leaves no trace.

    Whoever uses the compiler later imports it as usual.
    """
    if COMPILER in sys.modules or _FINDER in sys.meta_path:
        yield
        return
    defer_compiler()
    try:
        yield
    finally:
        _remove_stand_ins()


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_import(self.__name__), name)


class _Finder:
    """Import hook (PEP 451): finder and loader of the stand-ins, and of submodules, whose import ends the deferral."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname in STAND_INS:
            return ModuleSpec(fullname, self, is_package=fullname == COMPILER)  # type: ignore[arg-type]
        if not fullname.startswith(f"{COMPILER}."):
            return None
        _import(COMPILER)
        module = sys.modules.get(fullname)
        if module is None:
            return importlib.util.find_spec(fullname)
        return ModuleSpec(fullname, _Imported(module))  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        if spec.name == COMPILER:
            module.disable = _disable  # type: ignore[attr-defined]
            module.graph_break = _graph_break  # type: ignore[attr-defined]
        else:
            module.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """A stand-in has no code to run."""


class _Imported:
    """Loader of a module that was imported while its spec was searched for."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


_FINDER = _Finder()

_exempt: list[_Exempt] = []
"""Functions exempted from compilation before the compiler was imported."""


def _import(name: str) -> ModuleType:
    """Imports the real module of this name; the stand-ins are removed."""
    if _FINDER in sys.meta_path:
        _remove_stand_ins()
        compiler = importlib.import_module(COMPILER)
        while _exempt:
            exempt = _exempt.pop()
            if not exempt.is_registered:
                exempt.register(compiler)
    return importlib.import_module(name)


def _remove_stand_ins() -> None:
    with suppress(ValueError):
        sys.meta_path.remove(_FINDER)
    for stand_in in STAND_INS:
        if isinstance(sys.modules.get(stand_in), _StandIn):
            del sys.modules[stand_in]
    torch = sys.modules.get("torch")
    if isinstance(vars(torch).get("_dynamo") if torch else None, _StandIn):
        del torch._dynamo  # type: ignore[union-attr]


class _Exempt:
    """A call of ``torch._dynamo.disable``, repeated when the compiler is imported."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.run, self.arguments, self.keywords = function, arguments, keywords
        self.is_registered = False

    def register(self, compiler: ModuleType) -> None:
        self.is_registered = True
        self.run = compiler.disable(self.run, *self.arguments, **self.keywords)


def _disable(fn: Any = None, *arguments: Any, **keywords: Any) -> Any:
    """``torch._dynamo.disable``; a plain function is registered with the compiler once that is imported."""
    if fn is None:
        return functools.partial(_disable, **keywords)
    if not isinstance(fn, FunctionType):
        return _import(COMPILER).disable(fn, *arguments, **keywords)
    exempt = _Exempt(fn, arguments, keywords)
    _exempt.append(exempt)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        compiler = sys.modules.get(COMPILER)
        if not exempt.is_registered and compiler is not None and not isinstance(compiler, _StandIn):
            exempt.register(compiler)  # imported by another program, after ``compiler_deferred``
        return exempt.run(*args, **kwargs)

    return call


def _graph_break(*_arguments: Any, **_keywords: Any) -> None:
    """``torch._dynamo.graph_break`` where nothing is being compiled."""


def _is_compile_supported(device_type: Any) -> Any:
    return _import(UTILITIES).is_compile_supported(device_type)
