"""Lowering of array operations to ONNX: elementwise operations, shapes, slices, reductions, matrix products."""

# ruff: noqa: ARG001  (all operations have one signature)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from headstart.engine.onnx_graph import BATCH, INPUT, GraphValue, GraphWriter, Lowering, NotLowered, RecordedTensor

_TYPES = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8, torch.int64: TensorProto.INT64}


def output_batch_axis(*inputs: Any, rank: int) -> int:
    """The axis that counts images in the output of an elementwise operation."""
    axes = {x.value.batch + rank - x.ndim for x in inputs if isinstance(x, RecordedTensor)}
    if len(axes) != 1:
        raise NotLowered("the operands have different batch axes")
    return axes.pop()


def require_batch_first(x: RecordedTensor) -> int:
    """Returns 0, the batch axis.

    Raises:
        NotLowered: another axis counts the images.
    """
    if x.value.batch != 0:
        raise NotLowered("the first axis is not the batch axis")
    return 0


def operand_name(w: GraphWriter, x: Any, out: Tensor, batch: int) -> str:
    """Name of an operand of an elementwise operation; a constant that is repeated for each image is stored once."""
    if isinstance(x, Tensor) and not isinstance(x, RecordedTensor) and x.ndim == out.ndim and x.shape[batch] > 1:
        first = x.narrow(batch, 0, 1)
        if x.shape[batch] == out.shape[batch]:
            if not torch.equal(x, first.expand_as(x)):
                raise NotLowered("a constant differs between images")
            return w.array(first.numpy())
    return w.name(x)


def elementwise(kind: str, **attributes: Any) -> Lowering:
    """An operation on one tensor that keeps its shape."""

    def lower(w: GraphWriter, out: Tensor, x: RecordedTensor, *_: Any, **__: Any) -> GraphValue:
        return GraphValue(w.one(kind, w.name(x), **attributes), x.value.batch)

    return lower


def binary(kind: str, *, reverse: bool = False) -> Lowering:
    """An elementwise operation on two operands, of which one may be a constant."""

    def lower(w: GraphWriter, out: Tensor, x: Any, y: Any, alpha: float = 1, **unknown: Any) -> GraphValue:
        if unknown or out.dtype != torch.float32:
            raise NotLowered(f"{kind} of {out.dtype} {', '.join(unknown)}")
        batch = output_batch_axis(x, y, rank=out.ndim)
        first, second = (operand_name(w, part, out, batch) for part in ((y, x) if reverse else (x, y)))
        if alpha != 1:
            second = w.one("Mul", second, w.name(alpha))
        return GraphValue(w.one(kind, first, second), batch)

    return lower


def lower_copy(w: GraphWriter, out: Tensor, x: RecordedTensor, *_: Any, **__: Any) -> GraphValue:
    """Copies and changes of memory layout or dtype."""
    if out.dtype == x.dtype:
        return x.value
    if out.dtype not in _TYPES:
        raise NotLowered(f"dtype {out.dtype}")
    return GraphValue(w.one("Cast", w.name(x), to=_TYPES[out.dtype]), x.value.batch)


def lower_as_strided(
    w: GraphWriter, out: Tensor, x: RecordedTensor, size: Any, stride: Any, offset: Any = None
) -> GraphValue:
    """Marks the output of a global mean as channels last, which moves no value."""
    if x.shape[2:] != (1, 1) or tuple(size) != x.shape or tuple(stride[:2]) != (x.shape[1], 1) or offset:
        raise NotLowered("as_strided that reorders values")
    return x.value


def lower_reshape(w: GraphWriter, out: Tensor, x: RecordedTensor, *_: Any, **__: Any) -> GraphValue:
    """The same values in the same order."""
    if out.shape == x.shape:
        return x.value
    if x.value.batch != 0 or not out.ndim or out.shape[0] % BATCH:
        raise NotLowered("images are merged")
    return GraphValue(w.one("Reshape", w.name(x), w.ints(-1, *out.shape[1:])), 0)


def lower_permute(w: GraphWriter, out: Tensor, x: RecordedTensor, *arguments: Any) -> GraphValue:
    """Transposes, permutations."""
    order = list(range(x.ndim))
    if not arguments:
        order.reverse()
    elif isinstance(arguments[0], int):
        a, b = arguments
        order[a], order[b] = order[b], order[a]
    else:
        order = [axis % x.ndim for axis in arguments[0]]
    return GraphValue(w.one("Transpose", w.name(x), perm=order), order.index(x.value.batch))


def lower_squeeze(w: GraphWriter, out: Tensor, x: RecordedTensor, *arguments: Any) -> GraphValue:
    """Adds or removes an axis of length one after the batch axis."""
    if x.value.batch == 0 and out.ndim and out.shape[0] == x.shape[0]:
        return lower_reshape(w, out, x)
    raise NotLowered("an axis before the batch axis changes")


def lower_expand(w: GraphWriter, out: Tensor, x: RecordedTensor, *_: Any, **__: Any) -> GraphValue:
    """Broadcasting."""
    batch = x.value.batch + out.ndim - x.ndim
    shape = [1 if axis == batch else size for axis, size in enumerate(out.shape)]
    return GraphValue(w.one("Expand", w.name(x), w.ints(*shape)), batch)


def lower_slice(
    w: GraphWriter, out: Tensor, x: RecordedTensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> GraphValue:
    """Slices along an axis other than the batch axis."""
    value = x.value
    dim %= x.ndim
    if out.shape == x.shape:
        return value
    if dim == value.batch:
        raise NotLowered("images are treated differently")
    first, last = (0 if start is None else start), (x.shape[dim] if end is None else min(end, x.shape[dim]))
    return GraphValue(w.one("Slice", value.name, w.ints(first), w.ints(last), w.ints(dim), w.ints(step)), value.batch)


def _batch_axis_without(x: RecordedTensor, dim: int) -> int:
    """The batch axis after an axis is removed."""
    batch = x.value.batch
    if dim == batch:
        raise NotLowered("images are treated differently")
    return batch - (dim < batch)


def lower_select(w: GraphWriter, out: Tensor, x: RecordedTensor, dim: int, index: int) -> GraphValue:
    """One index of an axis other than the batch axis."""
    dim %= x.ndim
    place = w.array(np.array(index % x.shape[dim], np.int64))
    return GraphValue(w.one("Gather", w.name(x), place, axis=dim), _batch_axis_without(x, dim))


def lower_unbind(w: GraphWriter, out: Sequence[Tensor], x: RecordedTensor, dim: int = 0) -> list[GraphValue]:
    """All indices of an axis."""
    return [lower_select(w, part, x, dim, i) for i, part in enumerate(out)]


def lower_split(w: GraphWriter, out: Sequence[Tensor], x: RecordedTensor, _: Any, dim: int = 0) -> list[GraphValue]:
    """Parts of an axis."""
    dim %= x.ndim
    _batch_axis_without(x, dim)
    sizes = [part.shape[dim] for part in out]
    names = w.node("Split", [w.name(x), w.ints(*sizes)], len(sizes), axis=dim)
    return [GraphValue(name, x.value.batch) for name in names]


def lower_cat(w: GraphWriter, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> GraphValue:
    """Concatenation; constants are repeated for each image."""
    parts = [part for part in parts if part.numel()]
    batch = output_batch_axis(*parts, rank=out.ndim)
    dim %= out.ndim
    if dim == batch:
        raise NotLowered("images are merged")
    names = [operand_name(w, part, out, batch) for part in parts]
    if not all(isinstance(part, RecordedTensor) for part in parts):
        images = w.one("Shape", INPUT, start=0, end=1)
        if any(part.shape[batch] != BATCH for part in parts):
            raise NotLowered("a constant is concatenated with parts of images")
        ones = (w.ints(*[1] * batch) if batch else "", w.ints(*[1] * (out.ndim - batch - 1)))
        shape = w.one("Concat", *filter(None, (ones[0], images, ones[1])), axis=0)
        names = [
            n if isinstance(p, RecordedTensor) else w.one("Expand", n, shape) for n, p in zip(names, parts, strict=True)
        ]
    return GraphValue(w.one("Concat", *names, axis=dim), batch)


def lower_pad(w: GraphWriter, out: Tensor, x: RecordedTensor, pad: Sequence[int], value: float = 0) -> GraphValue:
    """Constant padding."""
    before, after = [0] * x.ndim, [0] * x.ndim
    for i in range(len(pad) // 2):
        before[-1 - i], after[-1 - i] = pad[2 * i], pad[2 * i + 1]
    batch = x.value.batch
    if before[batch] or after[batch]:
        raise NotLowered("the batch axis is padded")
    return GraphValue(w.one("Pad", w.name(x), w.ints(*before, *after), w.name(float(value))), batch)


def _axis_numbers(x: Tensor, dims: Any) -> list[int]:
    given = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return sorted(axis % x.ndim for axis in given)


def reduction(kind: str, whole: str = "") -> Lowering:
    """A reduction over axes; ``whole`` is ONNX's operator for all positions of a map."""

    def lower(
        w: GraphWriter, out: Tensor, x: RecordedTensor, dims: Any = None, keepdim: bool = False, **_: Any
    ) -> GraphValue:
        value, axes = x.value, _axis_numbers(x, dims)
        if value.batch in axes or out.dtype != torch.float32:
            raise NotLowered(f"{kind} over the batch axis")
        if whole and x.ndim == 4 and axes == [2, 3]:
            reduced = w.one(whole, value.name)
            return GraphValue(reduced if keepdim else w.one("Reshape", reduced, w.ints(-1, x.shape[1])), 0)
        batch = value.batch - (0 if keepdim else sum(axis < value.batch for axis in axes))
        return GraphValue(w.one(kind, value.name, w.ints(*axes), keepdims=int(keepdim)), batch)

    return lower


def lower_vector_norm(
    w: GraphWriter, out: Tensor, x: RecordedTensor, order: float = 2, *arguments: Any, **options: Any
) -> GraphValue:
    """Euclidean norms."""
    if order != 2:
        raise NotLowered(f"a norm of order {order}")
    return cast(GraphValue, reduction("ReduceL2")(w, out, x, *arguments, **options))


def lower_addmm(
    w: GraphWriter, out: Tensor, bias: Tensor, x: Tensor, y: Tensor, beta: float = 1, alpha: float = 1
) -> GraphValue:
    """Linear layers."""
    if not isinstance(x, RecordedTensor) or isinstance(y, RecordedTensor) or isinstance(bias, RecordedTensor):
        raise NotLowered("a product of two tensors that depend on the images")
    return GraphValue(
        w.one("Gemm", w.name(x), w.name(y), w.name(bias), alpha=float(alpha), beta=float(beta)), require_batch_first(x)
    )


def lower_matmul(w: GraphWriter, out: Tensor, x: Tensor, y: Tensor) -> GraphValue:
    """Matrix products; every operand that depends on the images has its batch axis first."""
    if not {t.value.batch for t in (x, y) if isinstance(t, RecordedTensor)} <= {0} or (
        x.ndim == 2 and isinstance(y, RecordedTensor)
    ):
        raise NotLowered("a product of two tensors that depend on the images")
    names = [w.name(x), w.name(y)]
    if x.ndim == 3:
        names = [operand_name(w, t, out, 0) for t in (x, y)]
    return GraphValue(w.one("MatMul", *names), 0)


def lower_softmax(w: GraphWriter, out: Tensor, x: RecordedTensor, dim: int, *_: Any, **__: Any) -> GraphValue:
    """Softmax over an axis other than the batch axis."""
    if dim % x.ndim == x.value.batch:
        raise NotLowered("a softmax over the batch axis")
    return GraphValue(w.one("Softmax", w.name(x), axis=dim), x.value.batch)


def lower_clamp(w: GraphWriter, out: Tensor, x: RecordedTensor, least: Any = None, most: Any = None) -> GraphValue:
    """Clamping to constant bounds."""
    if any(isinstance(bound, Tensor) for bound in (least, most)):
        raise NotLowered("clamp with tensors as bounds")
    bounds = ["" if bound is None else w.name(float(bound)) for bound in (least, most)]
    return GraphValue(w.one("Clip", w.name(x), *bounds), x.value.batch)


def lower_hardtanh(
    w: GraphWriter, out: Tensor, x: RecordedTensor, least: float = -1.0, most: float = 1.0
) -> GraphValue:
    """Clamping, with bounds as defaults."""
    return lower_clamp(w, out, x, least, most)


def lower_leaky_relu(w: GraphWriter, out: Tensor, x: RecordedTensor, slope: float = 0.01) -> GraphValue:
    """Leaky ReLU."""
    return GraphValue(w.one("LeakyRelu", w.name(x), alpha=float(slope)), x.value.batch)


def lower_silu(w: GraphWriter, out: Tensor, x: RecordedTensor) -> GraphValue:
    """SiLU."""
    return GraphValue(w.one("Mul", w.name(x), w.one("Sigmoid", w.name(x))), x.value.batch)


def lower_gelu(w: GraphWriter, out: Tensor, x: RecordedTensor, *, approximate: str = "none") -> GraphValue:
    """GELU, exact or by tanh."""
    return GraphValue(w.one("Gelu", w.name(x), approximate=approximate), x.value.batch)


def lower_power(w: GraphWriter, out: Tensor, x: RecordedTensor, exponent: Any) -> GraphValue:
    """Powers with a constant exponent."""
    if isinstance(exponent, Tensor):
        raise NotLowered("a power with a tensor as exponent")
    return GraphValue(w.one("Pow", w.name(x), w.name(exponent)), x.value.batch)


def lower_rsqrt(w: GraphWriter, out: Tensor, x: RecordedTensor) -> GraphValue:
    """Reciprocal square roots."""
    return GraphValue(w.one("Reciprocal", w.one("Sqrt", w.name(x))), x.value.batch)


def lower_roll(w: GraphWriter, out: Tensor, x: RecordedTensor, shifts: Any, dims: Any = ()) -> GraphValue:
    """Cyclic shifts along axes other than the batch axis."""
    value = x.value
    name = value.name
    for shift, dim in zip(shifts, dims, strict=True):
        if dim % x.ndim == value.batch:
            raise NotLowered("the batch axis is rolled")
        size = x.shape[dim]
        cut = -shift % size
        names = w.node("Split", [name, w.ints(cut, size - cut)], 2, axis=dim) if cut else [name]
        name = w.one("Concat", *names[::-1], axis=dim)
    return GraphValue(name, value.batch)
