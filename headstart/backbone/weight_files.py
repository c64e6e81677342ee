"""Files of weights: reading their tensors, and matching the tensors' names to a network's.

Training tools put prefixes before a network's names (``module.``, ``model.``, ``_orig_mod.``, ``backbone.``), nest the
tensors in a dictionary, and save several networks side by side (averaged weights, teacher and student, query and key
encoder). The prefix is found by comparing names with the network's, not by a list of tools.
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
"""Names of tensors that an error lists."""

DEPTH = 3
"""Levels of dictionaries in which tensors are looked for; an optimizer's lie deeper."""

WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, at any level."""

PREFERRED = ("ema", "teacher", "encoder_q", "base_encoder", "online")
"""Words in the place of a network that is preferred, where a file holds several: the one that its authors evaluate."""

_COUNTER = "num_batches_tracked"
"""Of BatchNorm; missing from files of PyTorch before 0.4.1, and without effect on a frozen network."""


@dataclass(frozen=True)
class MatchedWeights:
    """The tensors of a file that belong to a network.

    Attributes:
        state: by the network's own names; those of its classifier as well, where the file has them.
        note: what was removed from the names and what was left aside, a sentence; "" for nothing.
    """

    state: dict[str, Tensor]
    note: str


@dataclass(frozen=True)
class _Where:
    """Where in a file a network may lie.

    Attributes:
        place: dotted path of the dictionary; "" for the file's own.
        wrappers: removed from names at any level, see ``WRAPPERS``.
        prefix: removed from the beginning of names, with its dot.
        outside: names in the dictionary that do not begin with ``prefix``.
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
    """Tensors somewhere in a file, compared with the network."""

    where: _Where
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
        path: a .safetensors file, or one of ``torch.save`` that holds nothing but tensors and plain values.
        module: the network, without its classifier.
        architecture: its name, for messages.
        classifier: names of the layers of its classifier, which the file may hold.

    Raises:
        WeightsError: the file cannot be read, its tensors do not fit (lists what differs and what was tried), or
            several networks in it fit and none is preferred.
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
    """What a file of weights holds: tensors by name, perhaps in dictionaries within dictionaries. Nothing is unpickled.

    Raises:
        WeightsError: no such file, damaged, or it holds more than tensors and plain values.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: damaged, or no file of weights ({first_line(error)}).") from error
    except Exception as error:  # pickle's own errors: the file holds more than tensors
        found = re.search(r"GLOBAL (\S+)", str(error))
        other = f" ({found[1]})" if found else ""
        raise WeightsError(
            f"{path}: holds more than tensors{other}, and Headstart unpickles nothing. Save its state_dict() with "
            "safetensors.torch.save_file, or with torch.save alone."
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected tensors by name, found {type(content).__name__}.")
    return content


def _tables(content: Mapping[Any, Any], place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(place, tensors by name) of every dictionary that holds tensors, in depth."""
    own = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if own:
        yield place, own
    for key, value in content.items():
        if isinstance(value, Mapping) and depth > 1:
            yield from _tables(value, f"{place}.{key}" if place else str(key), depth - 1)


def _attempts(
    place: str, table: dict[str, Tensor], module: nn.Module, classifier: tuple[str, ...]
) -> Iterator[_Attempt]:
    """Comparisons below each prefix that may lead to the network; by timm's rule for other releases where need be."""
    expected = module.state_dict()
    wrappers = tuple(dict.fromkeys(found for name in table for found in WRAPPERS.findall(name)))
    table = {WRAPPERS.sub("", name): own for name, own in table.items()}
    for prefix in _prefixes(table, expected):
        inside = {name.removeprefix(prefix): own for name, own in table.items() if name.startswith(prefix)}
        outside = [name for name in table if not name.startswith(prefix)]
        where = _Where(place, wrappers, prefix, outside)
        attempt = _compared(where, inside, expected, classifier)
        yield attempt
        if not attempt.fits and (renamed := _renamed(inside, module)) is not None:
            yield _compared(where, renamed, expected, classifier)


def _prefixes(table: dict[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Prefixes below which the network may lie: "", those behind which most of its names follow, and common ones."""
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
    where: _Where, state: dict[str, Tensor], expected: Mapping[str, Tensor], classifier: tuple[str, ...]
) -> _Attempt:
    shapes = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(own.shape)}"
        for name, own in expected.items()
        if name in state and state[name].shape != own.shape
    ]
    missing = [name for name in expected if name not in state and not name.endswith(_COUNTER)]
    surplus = [name for name in state if name not in expected and not name.startswith(classifier)]
    return _Attempt(where, state, missing, shapes, surplus)


def _renamed(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors by timm's names, by its rule for the architecture's original release; None where it has none."""
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return None
    try:
        renamed: dict[str, Tensor] = rename(dict(state), module)
    except Exception:  # written for one release's names; on any other it fails in its own way
        return None
    return renamed


def _preferred(path: Path, fits: list[_Attempt]) -> _Attempt:
    """The network to take, of several that fit.

    Raises:
        WeightsError: two differ, and neither is preferred.
    """
    best = min(map(_rank, fits))
    first, *others = [attempt for attempt in fits if _rank(attempt) == best]
    for other in others:
        if any(not torch.equal(own, other.state[name]) for name, own in first.state.items() if name in other.state):
            names = [repr(own.where.path) if own.where.path else "its own names" for own in (first, other)]
            raise WeightsError(
                f"{path}: holds several networks that fit, under {' and '.join(names)}. Save the one to use in a "
                "separate file."
            )
    return first


def _rank(attempt: _Attempt) -> int:
    words = {word for part in attempt.where.path.split(".") for word in (part, *part.split("_"))}
    return next((rank for rank, word in enumerate(PREFERRED) if word in words), len(PREFERRED))


def _note(path: Path, chosen: _Attempt, fits: list[_Attempt]) -> str:
    where, said = chosen.where, []
    paths = list(dict.fromkeys(attempt.where.path for attempt in fits))
    if len(paths) > 1:
        said.append(f"took {where.path!r}, not {listed([repr(own) for own in paths if own != where.path], 3)}")
    removed = [repr(own) for own in (*where.wrappers, where.prefix) if own]
    if removed:
        said.append(f"removed {' and '.join(removed)} from the names of its tensors")
    if where.prefix and where.outside:
        said.append(f"left aside {len(where.outside):,} outside it ({listed(where.outside, 3)})")
    return f"Weights of {path.name}: {'; '.join(said)}." if said else ""


def _misfit(path: Path, architecture: str, attempts: list[_Attempt]) -> str:
    if not attempts:
        return f"{path}: holds no tensors."
    best = min(attempts, key=lambda own: (len(own.missing) + len(own.shapes), len(own.surplus)))
    parts = [
        f"{len(names):,} {what}: {listed(names)}"
        for what, names in (
            ("missing", best.missing),
            ("of another shape", best.shapes),
            ("not known", best.surplus),
        )
        if names
    ]
    below = f" below {best.where.path!r}" if best.where.path else ""
    tried = list(dict.fromkeys(attempt.where.prefix for attempt in attempts if attempt.where.prefix))
    words = f" Tried without the prefix{'es' if len(tried) > 1 else ''} {listed(tried, 4)} as well." if tried else ""
    return f"{path}: does not fit {architecture}. Keys{below} {'; '.join(parts)}.{words}"


def listed(names: list[str], most: int = LISTED) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
