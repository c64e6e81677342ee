"""Schema of the model file: bounds for every field of its document and every tensor.

Model files come from strangers as well. Document and tensors are checked before anything is built from them: nothing is
downloaded or imported by a name in the file, no memory is allocated that the file does not itself fill, and every fault
is one ``ModelFileError`` that names the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from typing import Any, Final, get_args

import timm
import torch
from torch import Tensor

from headstart.backbone.layers import Layout
from headstart.backbone.pooling import Pooling
from headstart.backbone.side_by_side import MOST_MEMBERS, member_names
from headstart.concurrency import ignored_warnings
from headstart.data.preprocessing import INTERPOLATIONS, CropMode
from headstart.errors import HeadstartError, ModelFileError, first_line
from headstart.training.custom_heads import DEEPEST as DEEPEST_HEAD
from headstart.training.custom_heads import KIND as MODULES
from headstart.training.custom_heads import LAYERS, SEQUENTIAL
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import build_head
from headstart.training.recipe import Recipe
from headstart.trust.calibration import Calibration

FORMAT_VERSION = 4
"""Format that this version writes; see ``model_file.upgraded`` for the earlier ones."""

DEEPEST = 40
"""Levels of lists and objects in the document."""

MOST_CLASSES = 100_000
LONGEST_NAME = 1_000
LONGEST_TEXT = 10_000
MOST_LAYERS = 20
"""Earlier layers whose means are features."""

LARGEST_SIDE = 2_048
"""Of the network's input, in pixels."""

LARGEST_INTEGER = 2**53
"""Up to which every reader of JSON keeps whole numbers exact; a larger count cannot be divided as a float."""

LARGEST_WINDOW = 64
"""Of kernels, strides, paddings and pooled maps in a head, whose activations have no other bound."""

DTYPES = frozenset(
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
)
PARTS = ("backbone.", "head.", "ood.")
"""What the tensors' names begin with."""

_ONE_ARCHITECTURE = r"[A-Za-z0-9_]+(\.[A-Za-z0-9_-]+)?"
_ARCHITECTURE = re.compile(rf"{_ONE_ARCHITECTURE}(\+{_ONE_ARCHITECTURE}){{0,{MOST_MEMBERS - 1}}}")
"""Without what timm takes for an address ("hf-hub:", "local-dir:")."""

_WINDOWS = frozenset(["kernel_size", "stride", "padding", "dilation", "output_size"])

Check = Callable[[str, Any], None]
"""Checks the value of a field, by the field's name."""


class InvalidField(ModelFileError):
    """A field of a model file is out of bounds."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}" if field else what)


def check_model(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Checks a document and its tensors, without building anything.

    Raises:
        ModelFileError: a field is out of bounds; the message names the first one.
    """
    _HEADER("", header)
    classes = len(header["classes"])
    if (thresholds := header.get("thresholds")) is not None and len(thresholds) != classes:
        raise InvalidField("thresholds", f"expected {classes:,} numbers, one for each class, found {len(thresholds):,}")
    size, side = header["preprocessing"], header["backbone"]["build"]["image_size"]
    if side is not None and (size["height"], size["width"]) != (side, side):
        raise InvalidField(
            "preprocessing", f"expected {side} x {side} pixels, found {size['height']} x {size['width']}"
        )
    counts = header.get("calibration", {})
    if counts.get("num_inliers_accepted", 0) > counts.get("num_inliers", 0):
        raise InvalidField("calibration.num_inliers_accepted", "more than calibration.num_inliers")
    _recipe("recipe", header["recipe"])
    _head(header["head"], {n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")}, classes)
    _ood_detector({n.removeprefix("ood."): t for n, t in tensors.items() if n.startswith("ood.")})


def check_depth(document: Any) -> None:
    """Checks the depth of a JSON document, without recursion.

    Raises:
        InvalidField: it has more than ``DEEPEST`` levels.
    """
    level = [document]
    for _ in range(DEEPEST):
        containers = [
            part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))
        ]
        level = [part for container in containers for part in container]
        if not level:
            return
    raise InvalidField("", f"more than {DEEPEST} levels of lists and objects")


def check_version(document: Any) -> None:
    """Checks that a document is an object with a format version.

    Raises:
        InvalidField: it is not.
    """
    _mapping("header", document)
    _integer(1)("format_version", document.get("format_version"))


def _found(value: Any) -> str:
    text = repr(value)
    return f"found {text if len(text) <= 60 else text[:57] + '...'}"


def _mapping(field: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise InvalidField(field, f"expected an object, {_found(value)}")


def _text(longest: int = LONGEST_TEXT, *, pattern: re.Pattern[str] | None = None, shortest: int = 0) -> Check:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, str) or not shortest <= len(value) <= longest:
            raise InvalidField(field, f"expected text of {shortest} to {longest:,} characters, {_found(value)}")
        if pattern is not None and not pattern.fullmatch(value):
            raise InvalidField(field, f"not an allowed name, {_found(value)}")

    return check


def _number(low: float, high: float) -> Check:
    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise InvalidField(field, f"expected a number from {low:g} to {high:g}, {_found(value)}")

    return check


def _integer(low: int, high: int = LARGEST_INTEGER) -> Check:
    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidField(field, f"expected a whole number from {low:,} to {high:,}, {_found(value)}")

    return check


def _one_of(*names: object) -> Check:
    def check(field: str, value: Any) -> None:
        if not any(value == name and type(value) is type(name) for name in names):
            raise InvalidField(field, f"expected one of {', '.join(map(str, names))}, {_found(value)}")

    return check


def _list(each: Check, low: int, high: int) -> Check:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise InvalidField(field, f"expected a list of {low} to {high:,} entries, {_found(value)}")
        for index, entry in enumerate(value):
            each(f"{field}[{index}]", entry)

    return check


def _or_none(check: Check) -> Check:
    return lambda field, value: None if value is None else check(field, value)


def _record(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, closed: bool = True
) -> Check:
    """An object with these fields; ``closed``: and no others."""
    optional = optional or {}

    def check(field: str, value: Any) -> None:
        _mapping(field or "header", value)
        for name, check_field in [*required.items(), *optional.items()]:
            inner = f"{field}.{name}" if field else name
            if name in value:
                check_field(inner, value[name])
            elif name in required:
                raise InvalidField(inner, "missing")
        strange = [name for name in value if name not in required and name not in optional]
        if closed and strange:
            raise InvalidField(field or "header", f"unknown field {strange[0]!r:.60}")

    return check


def _table(each: Check, most: int) -> Check:
    """An object with any names."""

    def check(field: str, value: Any) -> None:
        _mapping(field, value)
        if len(value) > most:
            raise InvalidField(field, f"expected at most {most:,} entries, found {len(value):,}")
        for name, entry in value.items():
            _text(LONGEST_NAME)(field, name)
            each(f"{field}.{name:.60}", entry)

    return check


def _class_names(field: str, value: Any) -> None:
    _list(_text(LONGEST_NAME, shortest=1), 1, MOST_CLASSES)(field, value)
    if len(set(value)) < len(value):
        raise InvalidField(field, f"{next(name for name in value if value.count(name) > 1)!r:.60} is listed twice")


def _value_range(field: str, value: Any) -> None:
    _list(_number(0, 1), 2, 2)(field, value)
    if value[0] >= value[1]:
        raise InvalidField(field, f"expected black below white, {_found(value)}")


def _architecture(field: str, value: Any) -> None:
    _text(200, pattern=_ARCHITECTURE)(field, value)
    if not all(timm.is_model(member.split(".")[0]) for member in member_names(value)):
        raise InvalidField(field, f"not an architecture of timm {timm.__version__}, {_found(value)}")


def _recipe(field: str, value: Any) -> None:
    try:
        Recipe.from_json(value)
    except HeadstartError as error:
        raise InvalidField(field, first_line(error)) from error


_SHARE = _number(0, 1)
_NAME = _text(LONGEST_NAME)
_SIDE = _integer(1, LARGEST_SIDE)
_FINITE = _number(-1e12, 1e12)

_CALIBRATION: Final[dict[str, Check]] = {
    "temperature": _number(1e-6, 1e6),
    "images": _integer(0),
    "target_accuracy": _SHARE,
    "threshold": _number(0, 2),
    "coverage": _SHARE,
    "accuracy": _SHARE,
    "source": _NAME,
    "missing": _text(),
    "num_inliers": _integer(0),
    "num_inliers_accepted": _integer(0),
}
"""Bounds of ``Calibration``'s fields; others that it has are numbers, text, or lists of numbers."""


def _plain(field: str, value: Any) -> None:
    """Checks a value of a field without declared bounds."""
    if isinstance(value, list):
        _list(_plain, 0, MOST_CLASSES)(field, value)
    elif isinstance(value, str):
        _text()(field, value)
    elif value is not None and not isinstance(value, bool):
        _FINITE(field, value)


_SCORES = _record({"correct": _integer(0), "count": _integer(0), "low": _SHARE, "high": _SHARE}, closed=False)

_HEADER = _record(
    {
        "format_version": _integer(1, FORMAT_VERSION),
        "classes": _class_names,
        "preprocessing": _record(
            {
                "height": _SIDE,
                "width": _SIDE,
                "crop_pct": _number(0.05, 2),
                "crop_mode": _one_of(*get_args(CropMode)),
                "interpolation": _one_of(*INTERPOLATIONS),
                "mean": _list(_SHARE, 3, 3),
                "std": _list(_number(1e-4, 100), 3, 3),
            },
            {"value_range": _or_none(_value_range)},
        ),
        "backbone": _record(
            {
                "architecture": _text(200, pattern=_ARCHITECTURE),
                "source": _NAME,
                "fingerprint": _text(64, pattern=re.compile("[0-9a-f]{64}")),
                "build": _record({"name": _architecture, "image_size": _or_none(_SIDE)}),
                "pool": _one_of(*get_args(Pooling)),
                "cut": _text(200),
                "layers": _list(_text(200, shortest=1), 0, MOST_LAYERS),
                "license": _text(200, shortest=1),
            }
        ),
        "head": _mapping,
        "recipe": _mapping,
        "data": _record({}, {"name": _NAME}, closed=False),
        "scores": _table(_SCORES, 100),
        "libraries": _table(_text(200), 100),
    },
    {
        "thresholds": _or_none(_list(_number(0, 2), 1, MOST_CLASSES)),
        "calibration": _record({}, {field.name: _CALIBRATION.get(field.name, _plain) for field in fields(Calibration)}),
    },
    closed=False,
)


def check_tensor(name: str, tensor: Tensor, *, earlier: Collection[str] = ()) -> None:
    """Checks name, type and values of a tensor.

    Args:
        name: in the file.
        tensor: with that name.
        earlier: names that earlier formats have as well.

    Raises:
        InvalidField: it belongs to no part of a model, or holds values that are not finite.
    """
    if not name.startswith(PARTS) and name not in earlier:
        raise InvalidField(f"tensor {name!r:.60}", "is not part of a model")
    if tensor.dtype not in DTYPES:
        raise InvalidField(f"tensor {name!r:.60}", f"of type {tensor.dtype}")
    if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float64)):
        raise InvalidField(f"tensor {name!r:.60}", "holds values that are not finite (NaN or infinity)")


def _shapes(tensors: Mapping[str, Tensor], part: str, expected: Mapping[str, tuple[int | None, ...]]) -> None:
    """Checks that tensors have the expected names and shapes and are floating-point; None for any length but 0."""
    _names(tensors, part, expected)
    for name, shape in expected.items():
        found = tuple(tensors[name].shape)
        if len(found) != len(shape) or any(f == 0 or e not in (None, f) for f, e in zip(found, shape, strict=True)):
            words = tuple("any" if length is None else length for length in shape)
            raise InvalidField(f"tensor {part}.{name}", f"expected the shape {words}, found {found}")


def _names(tensors: Mapping[str, Tensor], part: str, expected: Collection[str]) -> None:
    if missing := [name for name in expected if name not in tensors]:
        raise InvalidField(f"tensor {part}.{missing[0]}", "missing")
    if strange := [name for name in tensors if name not in expected]:
        raise InvalidField(f"tensor {part}.{strange[0]:.60}", "unknown")


def _floating(tensors: Mapping[str, Tensor], part: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InvalidField(f"tensor {part}.{name}", f"expected floating-point numbers, found {tensor.dtype}")


def _head(about: dict[str, Any], tensors: Mapping[str, Tensor], classes: int) -> None:
    _one_of("layers", "rbf", "neighbours", MODULES)("head.kind", about.get("kind"))
    {"layers": _layered, "rbf": _rbf, "neighbours": _neighbours, MODULES: _modules}[about["kind"]](
        about, tensors, classes
    )


def _layered(about: dict[str, Any], tensors: Mapping[str, Tensor], classes: int) -> None:
    _record(
        {
            "kind": _NAME,
            "spec": _text(200),
            "single": _one_of(True, False),
            "shape": _list(_integer(1, 100_000_000), 1, 4),
            "layout": _record({"channels_last": _one_of(True, False), "prefix_tokens": _integer(0, 1_000)}),
        }
    )("head", about)
    try:
        with ignored_warnings(), torch.device("meta"):  # shapes alone: what the file does not hold is not made room for
            spec = replace(HeadSpec.parse(about["spec"]), single=about["single"])
            expected = build_head(spec, about["shape"], classes, Layout(**about["layout"])).state_dict()
    except (HeadstartError, RuntimeError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise InvalidField("head", first_line(error)) from error
    _names(tensors, "head", expected)
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InvalidField(
                f"tensor head.{name}", f"expected {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
            )
    _floating({name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}, "head")


def _rbf(about: dict[str, Any], tensors: Mapping[str, Tensor], classes: int) -> None:
    _record({"kind": _NAME, "gamma": _number(1e-12, 1e6)})("head", about)
    _names(tensors, "head", ("support", "mean", "scale", "coefficients", "bias"))
    _floating(tensors, "head")
    if tensors["support"].ndim != 2:
        raise InvalidField(
            "tensor head.support", f"expected two axes, found the shape {tuple(tensors['support'].shape)}"
        )
    vectors, length = tensors["support"].shape
    _shapes(
        tensors,
        "head",
        {
            "support": (vectors, length),
            "mean": (length,),
            "scale": (length,),
            "coefficients": (vectors, classes),
            "bias": (classes,),
        },
    )
    if not bool((tensors["scale"] > 0).all()):
        raise InvalidField("tensor head.scale", "expected numbers above 0")


def _neighbours(about: dict[str, Any], tensors: Mapping[str, Tensor], classes: int) -> None:
    _shapes(tensors, "head", {"features": (None, None), "labels": (None,)})
    count = len(tensors["features"])
    _record(
        {
            "kind": _NAME,
            "classes": _one_of(classes),
            "neighbours": _integer(1, count),
            "temperature": _number(1e-6, 1e6),
        }
    )("head", about)
    _floating({"features": tensors["features"]}, "head")
    labels = tensors["labels"]
    if len(labels) != count or labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InvalidField("tensor head.labels", f"expected {count:,} class indices")


def _modules(about: dict[str, Any], _tensors: Mapping[str, Tensor], _classes: int) -> None:
    _record({"kind": _NAME, "module": _mapping})("head", about)
    pending: list[tuple[str, Any, int]] = [("head.module", about["module"], 1)]
    while pending:
        field, document, level = pending.pop()
        _mapping(field, document)
        if document.get("layer") == SEQUENTIAL and level <= DEEPEST_HEAD:
            _record({"layer": _NAME, "parts": _list(_list(_accept, 2, 2), 0, 100)})(field, document)
            for name, part in document["parts"]:
                _text(200, pattern=re.compile(r"[^.]+"))(f"{field}.parts", name)
                pending.append((f"{field}.{name}", part, level + 1))
            continue
        _one_of(*LAYERS)(f"{field}.layer", document.get("layer"))
        arguments = (*LAYERS[document["layer"]][1], "bias")
        _record({"layer": _NAME, "arguments": _record({}, {name: _argument(name) for name in arguments})})(
            field, document
        )


def _accept(_field: str, _value: Any) -> None:
    """Anything; looked at elsewhere."""


def _argument(name: str) -> Check:
    bound = LARGEST_WINDOW if name in _WINDOWS else 1e9

    def check(field: str, value: Any) -> None:
        if isinstance(value, list):
            _list(check, 1, 8)(field, value)
        elif isinstance(value, str):
            _text(20)(field, value)
        elif value is not None and not isinstance(value, bool):
            _number(-bound, bound)(field, value)

    return check


def _ood_detector(tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        return
    expected: dict[str, tuple[int | None, ...]] = {"references": (None, None)}
    expected |= {"limits": (2,)} if "limits" in tensors else {}
    _names(tensors, "ood", ("inlier_distances", *expected))
    _shapes({name: tensor for name, tensor in tensors.items() if name != "inlier_distances"}, "ood", expected)
    if tensors["inlier_distances"].ndim != 1:
        raise InvalidField(
            "tensor ood.inlier_distances",
            f"expected one axis, found the shape {tuple(tensors['inlier_distances'].shape)}",
        )
    _floating(tensors, "ood")
    for name, order in (("inlier_distances", "ascending"), ("limits", "low, high")):
        if name in tensors and not bool((tensors[name].diff() >= 0).all()):
            raise InvalidField(f"tensor ood.{name}", f"expected numbers in the order {order}")
