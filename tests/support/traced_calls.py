"""Which module of the package hands a value to which: a profiler that records the calls with that value."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

import headstart

PACKAGE = Path(headstart.__file__).parent

Recognise = Callable[[object], str]
"""Argument -> what it is, such as "folder"; "" for a value that is not followed."""


@dataclass(frozen=True)
class ValueCall:
    """A call from one module of the package into another one.

    Attributes:
        value: what ``Recognise`` says of an argument.
        caller: module, such as "data.scan"; "" for a call by a thread or by code outside the package.
        callee: module.
        function: that is called.
    """

    value: str
    caller: str
    callee: str
    function: str


@contextmanager
def traced_calls(recognise: Recognise) -> Iterator[list[ValueCall]]:
    """Records each kind of call once, in order, in all threads that begin meanwhile.

    Code of libraries between two modules of the package is passed over: its caller in the package counts. A method's
    ``self`` is no argument.
    """
    calls: dict[ValueCall, None] = {}
    found: list[ValueCall] = []
    modules: dict[CodeType, str] = {}

    def module_of(frame: FrameType) -> str:
        code = frame.f_code
        if code not in modules:
            path = Path(code.co_filename)
            inside = path.is_relative_to(PACKAGE)
            modules[code] = ".".join(path.relative_to(PACKAGE).with_suffix("").parts) if inside else ""
        return modules[code]

    def record(frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not (callee := module_of(frame)):
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        values = {recognise(frame.f_locals[name]) for name in names if name != "self" and name in frame.f_locals}
        if not values - {""}:
            return
        outer = frame.f_back
        while outer is not None and not module_of(outer):
            outer = outer.f_back
        caller = "" if outer is None else module_of(outer)
        if caller != callee:
            calls.update(dict.fromkeys(ValueCall(value, caller, callee, code.co_name) for value in values - {""}))

    before = sys.getprofile()
    threading.setprofile(record)
    sys.setprofile(record)
    try:
        yield found
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
        found += calls
