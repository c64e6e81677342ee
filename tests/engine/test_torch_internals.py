"""Private PyTorch API: each name that the package uses exists and does what the package relies on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import headstart as hs
from headstart.engine import torch_internals as internals

PACKAGE = Path(hs.__file__).parent
PRIVATE_OF_TORCH = re.compile(
    r"\b(?:torch|nn|fx|functional)(?:\.\w+)*\._[a-zA-Z]\w*|from torch[\w.]*\._\w+ import|(?<!self)\._version\b"
    r"|\._schema\b|\._forward_(?:pre_)?hooks\b|\b_foreach_\w+|_tensor_constant"
)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch._C, "_disabled_torch_function_impl"),
        (torch.Tensor, "_make_wrapper_subclass"),
        (torch.Tensor, "_version"),
        (torch.ops.aten.add.Tensor, "_schema"),
        (torch.cuda, "_is_in_bad_fork"),
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
        (nn.Module(), "_forward_hooks"),
        (nn.Module(), "_forward_pre_hooks"),
    ],
)
def test_the_name_exists(owner: object, name: str) -> None:
    assert hasattr(owner, name)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("name", ["_convolution_pointwise", "_is_mkldnn_bf16_supported"])
def test_the_onednn_operation_exists(name: str) -> None:
    assert hasattr(torch.ops.mkldnn, name)


def test_no_other_module_uses_private_names_of_torch() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in ("engine/torch_internals.py", "deferred_compiler.py"):
            found[name] = PRIVATE_OF_TORCH.findall(path.read_text())
    assert {name: uses for name, uses in found.items() if uses} == {}


def test_names_and_views_of_operations() -> None:
    assert internals.operation_name(torch.ops.aten.add_.Tensor) == "add_"
    assert internals.returns_view(torch.ops.aten.view.default)
    assert not internals.returns_view(torch.ops.aten.relu.default)


def test_a_version_counts_changes_of_a_tensor_and_its_views() -> None:
    tensor = torch.zeros(4)
    before = internals.version_of(tensor)
    tensor.view(2, 2).add_(1)
    assert internals.version_of(tensor) == before + 1


def test_a_wrapper_tensor_has_the_shape_of_another_and_claims_a_device() -> None:
    class Wrapper(Tensor):
        __torch_function__ = internals.disabled_torch_function

        @classmethod
        def __torch_dispatch__(cls, func: object, types: object, args: object = (), kwargs: object = None) -> object:
            raise AssertionError

    like = torch.empty(2, 3, device="meta").mT
    made = internals.wrapper_tensor(Wrapper, like, torch.device("cpu"))
    assert (type(made), made.shape, made.stride(), made.device) == (
        Wrapper,
        like.shape,
        like.stride(),
        torch.device("cpu"),
    )


def test_fake_tensors_run_a_network_without_computing() -> None:
    with internals.fake_tensors(), torch.no_grad():
        assert nn.Linear(3, 10**6)(torch.zeros(2, 3)).shape == (2, 10**6)


def test_operations_are_counted_without_module_hooks() -> None:
    linear = nn.Linear(3, 5)
    with internals.flop_counter() as counter:
        assert not internals.has_forward_hooks(linear)
        linear(torch.zeros(2, 3))
    assert counter.get_total_flops() == 2 * 2 * 3 * 5


def test_torch_fx_stores_constants_under_the_prefix() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(2)

    module = Constant()
    fx.Tracer().trace(module)
    assert any(name.startswith(internals.TRACED_CONSTANT) for name in vars(module))


def test_forward_hooks_are_seen() -> None:
    plain, after, before = nn.ReLU(), nn.ReLU(), nn.ReLU()
    after.register_forward_hook(lambda *_: None)
    before.register_forward_pre_hook(lambda *_: None)
    assert [internals.has_forward_hooks(module) for module in (plain, after, before)] == [False, True, True]


def test_cuda_is_usable_in_a_process_that_was_not_forked() -> None:
    assert os.getpid()
    assert not internals.is_cuda_unusable_after_fork()


def test_the_processor_is_asked_for_bfloat16() -> None:
    assert isinstance(internals.has_onednn_bfloat16(), bool)
    assert isinstance(internals.has_bfloat16_instructions(), bool)
    assert internals.has_onednn_fused_convolution() == torch.backends.mkldnn.is_available()


def test_the_fused_convolution_is_convolution_and_activation() -> None:
    if not internals.has_onednn_fused_convolution():
        pytest.skip("this PyTorch has no oneDNN")
    x, weight, bias = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    fused = internals.onednn_fused_convolution(x, weight, bias, [1, 1], [1, 1], [1, 1], 1, "relu", [], "")
    assert torch.allclose(fused, nn.functional.conv2d(x, weight, bias, padding=1).relu(), atol=1e-5)
