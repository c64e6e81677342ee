"""Private PyTorch API. Every private attribute of torch that the package depends on is used in this module only.

``tests/engine/test_torch_internals.py`` names each of them, and pyproject.toml caps torch's version.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T", bound=Tensor)

TRACED_CONSTANT = "_tensor_constant"
"""Prefix of the attributes in which torch.fx stores tensors that a network creates in its forward pass."""

disabled_torch_function: Any = torch._C._disabled_torch_function_impl
"""Value of ``__torch_function__`` for tensor subclasses that only override ``__torch_dispatch__``."""


def wrapper_tensor(kind: type[T], like: Tensor, device: torch.device) -> T:
    """A tensor of a subclass without storage, with the shape, strides and dtype of another, that reports a device."""
    tensor: T = torch.Tensor._make_wrapper_subclass(
        kind, like.size(), strides=like.stride(), storage_offset=like.storage_offset(), dtype=like.dtype, device=device
    )
    return tensor


def operation_name(operation: Any) -> str:
    """Name of an ATen operation without its namespace: "convolution", "add_" (in place)."""
    name: str = operation._schema.name
    return name.removeprefix("aten::")


def returns_view(operation: Any) -> bool:
    """True if an ATen operation's output may share memory with an input."""
    return any(output.alias_info is not None for output in operation._schema.returns)


def version_of(tensor: Tensor) -> int:
    """Number of in-place changes of a tensor; views share the count of their tensor."""
    return tensor._version


def fake_tensors() -> AbstractContextManager[object]:
    """Context in which operations return tensors without data; its first use imports PyTorch's compiler (2 s)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def flop_counter() -> FlopCounterMode:
    """Counts floating-point operations without module hooks, which would affect networks in all threads."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, a fifth of a second

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = cast(Any, _NoModules())
    return counter


class _NoModules:
    """Replaces ``ModuleTracker``: all operations count for the whole network."""

    parents = ("Global",)

    def __enter__(self) -> None:
        """Registers no hooks."""

    def __exit__(self, *_: object) -> None:
        """There are no hooks to remove."""


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def has_onednn_fused_convolution() -> bool:
    """True if this PyTorch has oneDNN's convolution fused with an activation."""
    return _has_onednn() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def onednn_fused_convolution(*arguments: Any) -> Tensor:
    """Computes oneDNN's convolution with an activation.

    Args:
        arguments: input, weight, bias, padding, stride, dilation, groups, activation, its numbers, its algorithm.
    """
    return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(*arguments))


def has_onednn_bfloat16() -> bool:
    """True if oneDNN computes convolutions in bfloat16 on this processor (AVX-512 or newer)."""
    return bool(_has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_bfloat16_instructions() -> bool:
    """True if an x86 processor has instructions for bfloat16: AVX-512 BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or has_amx())


def has_amx() -> bool:
    """True if an x86 processor has AMX, instructions for products of small matrices."""
    return bool(torch.cpu._is_amx_tile_supported())


def is_cuda_unusable_after_fork() -> bool:
    """True if this process was forked from one that had initialised CUDA."""
    return bool(getattr(torch.cuda, "_is_in_bad_fork", bool)())


def has_forward_hooks(module: nn.Module) -> bool:
    """True if forward hooks or forward pre-hooks are registered on a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
