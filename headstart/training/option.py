"""Declaration of one option: its group, range, help, and what it requires or excludes.

A dataclass field made by ``option`` carries its declaration as metadata. Validation, the command line,
``docs/options.md`` and the typed keyword arguments are all derived from these declarations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

from headstart.errors import OptionError

Group = Literal["data", "features", "head", "fine-tuning", "extending", "evaluation", "output"]

Name = Callable[[str], str]
"""How an option is called where an error is shown: ``image_size`` in Python, ``--image-size`` on the command line."""


@dataclass(frozen=True)
class Range:
    """Numbers that an option accepts.

    Attributes:
        low: the smallest.
        high: the largest; None for no limit.
        excludes_low: whether ``low`` itself is refused.
        excludes_high: whether ``high`` itself is refused.
        unit: of the numbers, for example "pixels".
    """

    low: float
    high: float | None = None
    excludes_low: bool = False
    excludes_high: bool = False
    unit: str = ""

    def __contains__(self, number: float) -> bool:
        """False for NaN too, which no comparison holds for."""
        above = number > self.low if self.excludes_low else number >= self.low
        if self.high is None:
            return above
        return above and (number < self.high if self.excludes_high else number <= self.high)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.high is None:
            return f"{'more than' if self.excludes_low else 'at least'} {self.low:,}{unit}"
        if not self.excludes_low and not self.excludes_high:
            return f"{self.low:,} to {self.high:,}{unit}"
        low = f"more than {self.low:,}" if self.excludes_low else f"{self.low:,} or more"
        return f"{low} and {'less than' if self.excludes_high else 'at most'} {self.high:,}{unit}"


@dataclass(frozen=True)
class Option:
    """Declaration of one option.

    Attributes:
        group: heading under which it is listed.
        help: what it does and when to use it; the default is added where the text is shown.
        auto: meaning of the default None; "" if the default is a value.
        limits: the numbers accepted.
        requires: another option that must be given as well.
        excludes: options that cannot be given as well.
        reason: why it requires or excludes them, for the error message.
        metavar: placeholder of its value on the command line.
        is_path: whether the value may name a file or folder of this machine.
        is_basic: whether ``headstart train --help`` lists it among the first options.
        needs_fine_tuning: whether it concerns fine-tuning alone, and so makes effort "auto" mean "quick".
        also_trains_heads: whether heads trained by gradient descent use it as well, without fine-tuning.
    """

    group: Group
    help: str
    auto: str = ""
    limits: Range | None = None
    requires: str = ""
    excludes: tuple[str, ...] = ()
    reason: str = ""
    metavar: str = ""
    is_path: bool = False
    is_basic: bool = False
    needs_fine_tuning: bool = False
    also_trains_heads: bool = False


def option(default: Any, group: Group, help: str, **declaration: Any) -> Any:
    """A dataclass field with its declaration.

    Args:
        default: the value, or None for one that is chosen automatically.
        group: see ``Option``.
        help: see ``Option``.
        **declaration: further fields of ``Option``.
    """
    return field(default=default, metadata={"option": Option(group, help, **declaration)})


def declaration_of(declared: Field[Any]) -> Option:
    """The declaration that ``option`` attached to a dataclass field."""
    found: Option = declared.metadata["option"]
    return found


def python_name(name: str) -> str:
    """An option's name as a keyword argument."""
    return name


def flag_name(name: str) -> str:
    """An option's name on the command line: ``image_size`` becomes ``--image-size``."""
    return f"--{name.replace('_', '-')}"


def default_text(default: Any, auto: str) -> str:
    """A default in words: a value, or "auto" and what that means."""
    if default is None:
        return f"auto ({auto})"
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The values of a ``Literal`` annotation; () for any other type."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def check_limits(name: str, value: Any, annotation: Any, limits: Range | None, shown: Name = python_name) -> None:
    """Checks an option of the right type against its choices and its range.

    Raises:
        OptionError: the value is not among them.
    """
    choices = choices_of(annotation)
    if choices and value not in choices:
        raise OptionError(f"{shown(name)} {value!r}: expected one of {', '.join(choices)}.")
    if value == "":
        raise OptionError(f"{shown(name)}: the text is empty; leave the option out for its default.")
    if limits is not None and value is not None and value not in limits:
        raise OptionError(f"{shown(name)} {value}: expected {limits}.")


def check_rules(options: Mapping[str, Option], given: Collection[str], shown: Name = python_name) -> None:
    """Checks what options require and exclude by their declaration.

    Args:
        options: name -> declaration of every option.
        given: names of those that differ from their default.
        shown: how options are called in messages.

    Raises:
        OptionError: an option is given without one that it requires, or with one that it excludes.
    """
    for name in given:
        declared = options[name]
        if declared.requires and declared.requires not in given:
            raise OptionError(f"{shown(name)}: requires {shown(declared.requires)}; {declared.reason}.")
        for other in declared.excludes:
            if other in given:
                raise OptionError(
                    f"{shown(other)}: cannot be combined with {shown(name)}; {declared.reason}. Leave one of the two "
                    "out."
                )


def as_type(name: str, value: Any, annotation: Any) -> Any:
    """Converts an option to its declared type; NumPy numbers and paths become plain values, for JSON.

    Raises:
        OptionError: the value has another type; ``True`` is not a number, and "3" is not 3.
    """
    kinds = (str,) if choices_of(annotation) else get_args(annotation) or (annotation,)
    if value is None and type(None) in kinds:
        return None
    is_bool = isinstance(value, bool) or type(value).__name__ == "bool"  # numpy.bool is no subclass of bool
    if bool in kinds and is_bool:
        return bool(value)
    if int in kinds and isinstance(value, Integral) and not is_bool:
        return int(value)
    if float in kinds and isinstance(value, Real) and not is_bool:
        with suppress(OverflowError):  # a whole number beyond 1e308
            return float(value)
    if str in kinds and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    words = {str: "text", bool: "True or False", int: "a whole number", float: "a number", type(None): "None"}
    given = " ".join(repr(value).split())[:60]
    remedy = " To train a custom module, see headstart.prepare." if name == "head" else ""
    raise OptionError(f"{name}: expected {' or '.join(words[kind] for kind in kinds)}, got {given}.{remedy}")
