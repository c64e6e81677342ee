"""Weight files: reading their tensors, and matching the tensors' names to those of a network.

Training tools add prefixes to a network's names (``module.``, ``model.``, ``_orig_mod.``, ``backbone.``), nest the
tensors in dictionaries, and save several networks in one file (averaged weights, teacher and student, query and key
encoder). The prefix is found by comparison with the network's names, not from a list of tools.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from headstart.errors import WeightsError, first_line

LISTED = 8
"""Maximum number of tensor names in an error message."""

DEPTH = 3
"""Levels of nested dictionaries that are searched for tensors; those of an optimizer are deeper."""

WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Components that torch.compile, FSDP and activation checkpointing insert into names, at any level."""

PREFERRED = ("ema", "teacher", "encoder_q", "base_encoder", "online")
"""Words in the path of the network to prefer if a file contains several: the one that its authors evaluate."""

_COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that is missing in files of PyTorch before 0.4.1 and has no effect on a frozen network."""


@dataclass(frozen=True)
class MatchedWeights:
    """The tensors of a file that belong to a network.

    Attributes:
        state: tensors by the network's names, with those of its classifier if the file contains them.
        note: a sentence about what was removed from the names and what was ignored, or "".
    """

    state: dict[str, Tensor]
    note: str


@dataclass(frozen=True)
class _Location:
    """A location in a file where a network may be.

    Attributes:
        place: dotted path of the dictionary; "" for the top level.
        wrappers: components to remove from names at any level, see ``WRAPPERS``.
        prefix: to remove from the beginning of names, with its dot.
        outside: names in the dictionary that do not start with ``prefix``.
    """

    place: str
    wrappers: tuple[str, ...]
    prefix: str
    outside: list[str]

    @property
    def path(self) -> str:
        """Dotted path of the network in the file."""
        return ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part)


@dataclass(frozen=True)
class _Attempt:
    """The tensors at a location of a file, compared with the network."""

    location: _Location
    state: dict[str, Tensor]
    missing: list[str]
    shapes: list[str]
    surplus: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.shapes or self.surplus)


def match_weights(path: Path, module: nn.Module, *, architecture: str, classifier: tuple[str, ...]) -> MatchedWeights:
    """Reads the tensors of a file that belong to a network.

    Args:
        path: a .safetensors file, or a file of ``torch.save`` that contains only tensors and plain values.
        module: the network, without its classifier.
        architecture: its name, for messages.
        classifier: names of the layers of its classifier, which the file may contain.

    Raises:
        WeightsError: the file cannot be read, its tensors do not fit (lists the differences and what was tried), or it
            contains several networks that fit and none is preferred.
    """
    attempts = [
        attempt
        for place, table in _tables(read_tensors(path))
        for attempt in _attempts(place, table, module, tuple(f"{name}." for name in classifier))
    ]
    fits = [attempt for attempt in attempts if attempt.fits]
    if not fits:
        raise WeightsError(_misfit(path, architecture, attempts))
    chosen = _preferred(path, fits)
    ours = module.state_dict()
    counters = {name: ours[name] for name in ours if name not in chosen.state}
    return MatchedWeights(chosen.state | counters, _note(path, chosen, fits))


def read_tensors(path: Path) -> Mapping[Any, Any]:
    """The content of a weight file: tensors by name, possibly in nested dictionaries. Nothing is unpickled.

    Raises:
        WeightsError: the file does not exist, is damaged, or contains more than tensors and plain values.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: damaged, or not a weight file ({first_line(error)}).") from error
    except Exception as error:  # errors of pickle: the file contains more than tensors
        found = re.search(r"GLOBAL (\S+)", str(error))
        other = f" ({found[1]})" if found else ""
        raise WeightsError(
            f"{path}: contains more than tensors{other}, and Headstart does not unpickle objects. Save only its "
            "state_dict(), with safetensors.torch.save_file or torch.save."
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected tensors by name, found {type(content).__name__}.")
    return content


def _tables(content: Mapping[Any, Any], place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(path, tensors by name) of every dictionary that contains tensors, depth first."""
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and depth > 1:
            yield from _tables(value, f"{place}.{key}" if place else str(key), depth - 1)


def _attempts(
    place: str, table: dict[str, Tensor], module: nn.Module, classifier: tuple[str, ...]
) -> Iterator[_Attempt]:
    """Comparisons below each possible prefix; if the names differ, also with timm's renaming of other releases."""
    expected = module.state_dict()
    wrappers = tuple(dict.fromkeys(found for name in table for found in WRAPPERS.findall(name)))
    table = {WRAPPERS.sub("", name): tensor for name, tensor in table.items()}
    for prefix in _prefixes(table, expected):
        inside = {name.removeprefix(prefix): tensor for name, tensor in table.items() if name.startswith(prefix)}
        outside = [name for name in table if not name.startswith(prefix)]
        location = _Location(place, wrappers, prefix, outside)
        attempt = _compared(location, inside, expected, classifier)
        yield attempt
        if not attempt.fits and (renamed := _renamed(inside, module)) is not None:
            yield _compared(location, renamed, expected, classifier)


def _prefixes(table: dict[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Possible prefixes of the network: "", those that most of its names follow, and common ones."""
    followed, common = Counter[str](), Counter[str]()
    for name in table:
        places = [0, *(found.end() for found in re.finditer(r"\.", name))]
        followed.update(name[:place] for place in places if name[place:] in expected)
        common.update(name[:place] for place in places)
    most = max(followed.values(), default=0)
    found = [prefix for prefix, count in followed.items() if 2 * count > most]
    found += [prefix for prefix, count in common.items() if 2 * count > len(table)]
    return list(dict.fromkeys(["", *found]))


def _compared(
    location: _Location, state: dict[str, Tensor], expected: Mapping[str, Tensor], classifier: tuple[str, ...]
) -> _Attempt:
    shapes = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [name for name in expected if name not in state and not name.endswith(_COUNTER)]
    surplus = [name for name in state if name not in expected and not name.startswith(classifier)]
    return _Attempt(location, state, missing, shapes, surplus)


def _renamed(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors renamed by timm's function for the original release of the architecture; None if it has none."""
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return None
    try:
        renamed: dict[str, Tensor] = rename(dict(state), module)
    except Exception:  # the function is written for the names of one release; other names may cause any error
        return None
    return renamed


def _preferred(path: Path, fits: list[_Attempt]) -> _Attempt:
    """The network to use if several fit.

    Raises:
        WeightsError: two differ, and neither is preferred.
    """
    best = min(map(_rank, fits))
    first, *others = [attempt for attempt in fits if _rank(attempt) == best]
    for other in others:
        if any(not torch.equal(t, other.state[name]) for name, t in first.state.items() if name in other.state):
            names = [repr(one.location.path) if one.location.path else "the top level" for one in (first, other)]
            raise WeightsError(
                f"{path}: contains several networks that fit, under {' and '.join(names)}. Save the one to use in a "
                "separate file."
            )
    return first


def _rank(attempt: _Attempt) -> int:
    words = {word for part in attempt.location.path.split(".") for word in (part, *part.split("_"))}
    return next((rank for rank, word in enumerate(PREFERRED) if word in words), len(PREFERRED))


def _note(path: Path, chosen: _Attempt, fits: list[_Attempt]) -> str:
    location, parts = chosen.location, []
    paths = list(dict.fromkeys(attempt.location.path for attempt in fits))
    if len(paths) > 1:
        parts.append(f"used {location.path!r}, not {listed([repr(p) for p in paths if p != location.path], 3)}")
    removed = [repr(part) for part in (*location.wrappers, location.prefix) if part]
    if removed:
        parts.append(f"removed {' and '.join(removed)} from the names of its tensors")
    if location.prefix and location.outside:
        parts.append(f"ignored {len(location.outside):,} outside it ({listed(location.outside, 3)})")
    return f"Weights of {path.name}: {'; '.join(parts)}." if parts else ""


def _misfit(path: Path, architecture: str, attempts: list[_Attempt]) -> str:
    if not attempts:
        return f"{path}: contains no tensors."
    best = min(attempts, key=lambda one: (len(one.missing) + len(one.shapes), len(one.surplus)))
    parts = [
        f"{len(names):,} {what}: {listed(names)}"
        for what, names in (
            ("missing", best.missing),
            ("with another shape", best.shapes),
            ("unknown", best.surplus),
        )
        if names
    ]
    below = f" below {best.location.path!r}" if best.location.path else ""
    tried = list(dict.fromkeys(attempt.location.prefix for attempt in attempts if attempt.location.prefix))
    words = f" Tried without the prefix{'es' if len(tried) > 1 else ''} {listed(tried, 4)} as well." if tried else ""
    return f"{path}: does not fit {architecture}. Keys{below} {'; '.join(parts)}.{words}"


def listed(names: list[str], most: int = LISTED) -> str:
    """The first names of a list, and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
