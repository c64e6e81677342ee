"""A folded network has the outputs and gradients of the original layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.models import create_model
from torch import Tensor, fx, nn

from headstart.backbone.split import SplittableBackbone
from headstart.backbone.tracing import trace
from headstart.engine.conv_bn_fusion import (
    UnitInput,
    _round_keeping_sums,
    find_units,
    fold_for_inference,
    fold_for_training,
    has_bfloat16,
    record_inputs,
)

NETWORKS: dict[str, dict[str, Any]] = {
    "tf_efficientnet_lite0": {},
    "mobilenetv3_large_100": {},
    "resnet18": {},
    "vgg16": {"mlp_ratio": 0.02},
    "regnety_016": {},
    "convnext_atto": {},
    "densenet121": {},
    "vit_tiny_patch16_224": {"img_size": 32},
}
"""One of each kind, with what makes it small."""

QUICK = ("tf_efficientnet_lite0", "resnet18", "convnext_atto", "vit_tiny_patch16_224")
LONG = pytest.mark.exhaustive

SIDE = 32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As fast on images of this size, and fast on a machine that does something else as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lively(module: nn.Module) -> nn.Module:
    """In inference mode, with statistics, scales and shifts that a wrong folding would show."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if key.endswith(("weight", "var", "gamma")) else 0.2 * noise)
    return module.eval()


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively(create_model(name, num_classes=0, **NETWORKS[name]))


def images(count: int = 2, side: int = SIDE, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def folded(module: nn.Module, sample: Tensor, **options: Any) -> fx.GraphModule:
    traced = trace(module)
    units = find_units(traced)
    return fold_for_inference(traced, units, record_inputs(traced, units, sample), **options)


def gap(given: Tensor, expected: Tensor) -> float:
    """The largest difference, over what two images differ by."""
    return float((given - expected).abs().max() / (expected[0] - expected[1]).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=LONG) for name in NETWORKS])
def test_folded_inference_gives_what_the_networks_own_layers_give(name: str) -> None:
    module = network(name)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with torch.inference_mode():
        expected = module(images())
        fast = folded(module, images())
        assert gap(fast(images()), expected) < 1e-4
        assert gap(fast(images(3)), module(images(3))) < 1e-4
        low = folded(module, images(), low_precision_from=0)(images()).float()
        assert 1e-4 < float((low - expected).norm() / expected.norm()) < 0.05
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "convolutions", "norms", "activations"),
    [
        ("tf_efficientnet_lite0", 49, 49, 33),
        ("mobilenetv3_large_100", 63, 46, 40),
        ("resnet18", 20, 20, 9),
        ("vgg16", 13, 0, 13),
        ("densenet121", 120, 59, 59),
        ("vit_tiny_patch16_224", 1, 0, 0),
    ],
)
def test_units_are_found(name: str, convolutions: int, norms: int, activations: int) -> None:
    units = find_units(trace(network(name)))
    found = [
        len(units),
        sum(unit.norm is not None for unit in units),
        sum(unit.activation is not None for unit in units),
    ]
    assert found == [convolutions, norms, activations]


@pytest.mark.slow
def test_folding_from_a_convolution_on_leaves_what_is_before_it_in_float32() -> None:
    module = network("resnet18")
    with torch.inference_mode():
        expected = module(images())
        errors = [
            float((folded(module, images(), low_precision_from=start)(images()).float() - expected).norm())
            for start in (0, 12, 20)
        ]
    assert errors[0] > errors[1] > 100 * errors[2]


class Block(nn.Module):
    """8 channels in and out."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.steps = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.steps(self, x)


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, **options)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "an activation that several share": lambda: Block(
        lambda m, x: m.act(m.b(m.act(m.a(x)))), a=conv(), b=conv(), act=nn.ReLU()
    ),
    "a convolution that is run twice, on maps of two sizes": lambda: Block(
        lambda m, x: m.norm(m.a(m.pool(m.norm(m.a(x))))),
        a=Conv2dSame(8, 8, 3, 2),
        norm=nn.BatchNorm2d(8),
        pool=nn.MaxPool2d(2),
    ),
    "a norm that two share": lambda: Block(lambda m, x: m.n(m.b(m.n(m.a(x)))), a=conv(), b=conv(), n=nn.BatchNorm2d(8)),
    "a norm that keeps no statistics": lambda: nn.Sequential(
        conv(), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()
    ),
    "a norm without scale and shift": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "a convolution without bias": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    "groups": lambda: nn.Sequential(conv(groups=2), nn.BatchNorm2d(8), conv(groups=8), nn.BatchNorm2d(8)),
    "more filters than channels, one channel each": lambda: nn.Sequential(
        nn.Conv2d(8, 16, 5, groups=8), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)
    ),
    "a convolution whose output two use": lambda: Block(
        lambda m, x: m.n(y := m.a(x)) + y, a=conv(), n=nn.BatchNorm2d(8)
    ),
    "a norm whose output two use": lambda: Block(
        lambda m, x: m.act(y := m.n(m.a(x))) + y, a=conv(), n=nn.BatchNorm2d(8), act=nn.ReLU(inplace=True)
    ),
    "an input that is used again": lambda: Block(
        lambda m, x: m.act(m.n(m.a(x)) + x), a=conv(), n=nn.BatchNorm2d(8), act=nn.ReLU(inplace=True)
    ),
    "layers that do nothing in between": lambda: nn.Sequential(
        conv(), nn.Identity(), nn.BatchNorm2d(8), nn.Identity(), nn.Identity(), nn.ReLU(), nn.Identity()
    ),
    "the norm before the convolution": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.ReLU(), conv()),
    "two norms": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU()),
    "a norm behind the activation": lambda: nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(8)),
    "a norm with an activation that oneDNN lacks": lambda: nn.Sequential(
        conv(), BatchNormAct2d(8, act_layer=nn.ELU), conv(), BatchNormAct2d(8, act_layer=nn.LeakyReLU, inplace=True)
    ),
    "a norm with its own and another activation": lambda: nn.Sequential(
        conv(), BatchNormAct2d(8, act_layer=nn.SiLU), nn.ReLU(), conv(), BatchNormAct2d(8, apply_act=False), nn.ReLU()
    ),
    "an activation that is learnt": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8), nn.PReLU(8), conv()),
    "filters of one pixel with padding, and in groups": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 1, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, stride=2)
    ),
    "circular padding": lambda: nn.Sequential(conv(padding_mode="circular"), nn.BatchNorm2d(8), nn.ReLU()),
    "another output than a tensor": lambda: Block(
        lambda m, x: {"inner": (y := m.n(m.a(x))), "outer": m.b(y)}, a=conv(), b=conv(), n=nn.BatchNorm2d(8)
    ),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_unusual_networks_fold_right_too(kind: str) -> None:
    torch.manual_seed(0)
    module = lively(BLOCKS[kind]())
    x = images(channels=8, side=17)
    with torch.inference_mode():
        kept = x.clone()
        fast = folded(module, x)
        given, expected = fast(x), module(x)
        for name in expected if isinstance(expected, dict) else [()]:
            assert torch.allclose(given[name], expected[name], atol=2e-5), name
        assert torch.equal(x, kept)
    assert_trains_alike(module, x, dtype=torch.float64, tolerance=1e-9)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU6(inplace=True),
        nn.Hardtanh(-0.5, 0.7),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.SiLU(inplace=True),
        nn.Hardswish(inplace=True),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.ELU(),
    ],
    ids=repr,
)
def test_activations_are_the_networks_own(activation: nn.Module) -> None:
    torch.manual_seed(0)
    module = lively(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), activation))
    with torch.no_grad():
        module[1].weight.mul_(5)
    x = images(channels=8, side=17)
    with torch.inference_mode():
        assert torch.allclose(folded(module, x)(x), module(x), atol=1e-5)
    assert_trains_alike(module, x, dtype=torch.float64, tolerance=1e-9)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_is_tensorflows_where_it_is_uneven() -> None:
    torch.manual_seed(0)
    seen = set()
    for kernel in (2, 3, 5, (3, 6)):
        for stride in (1, 2, (1, 3)):
            for dilation in (1, 2):
                for groups in (1, 8):
                    layers = [Conv2dSame(8, 8, kernel, stride, dilation=dilation, groups=groups)]
                    if stride == 1:
                        layers.append(nn.Conv2d(8, 8, kernel, padding="same", dilation=dilation, groups=groups))
                    for layer in layers:
                        for height, width in ((11, 12), (12, 13)):
                            x = torch.randn(2, 8, height, width)
                            module = nn.Sequential(layer)
                            with torch.inference_mode():
                                fast = folded(module, x)
                                assert torch.allclose(fast(x), module(x), atol=1e-5), (layer, x.shape)
                            unit = fast.get_submodule("_unit0")
                            seen.add((unit.weight.shape[2:] != layer.weight.shape[2:], bool(unit.surround)))
                    assert_trains_alike(nn.Sequential(layers[0]), x, dtype=torch.float64, tolerance=1e-9)
    assert seen == {(False, False), (True, False), (False, True)}  # as it is, a larger kernel, a padded input


def test_a_norm_in_training_mode_is_left_to_itself() -> None:
    module = lively(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()))
    module[1].train()
    (unit,) = find_units(trace(module))
    assert unit.norm is None
    assert unit.activation is None


def test_layers_outside_the_units_read_float32_in_low_precision_too() -> None:
    module = lively(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Flatten(1), nn.Linear(8 * 64, 8), nn.LayerNorm(8)))
    x = images(channels=8, side=8)
    with torch.inference_mode():
        low = folded(module, x, low_precision_from=0)(x)
        assert low.dtype == torch.float32
        assert torch.allclose(low, module(x), atol=0.05)


def test_rounding_keeps_each_filters_sum() -> None:
    filters = torch.randn(200, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounded = _round_keeping_sums(filters, torch.bfloat16)
    assert torch.equal(rounded, rounded.bfloat16().double())
    sizes = filters.abs().flatten(1)
    half_unit = 2.0**-8
    off = (rounded - filters).sum((1, 2, 3)).abs()
    assert (off <= half_unit * (sizes.min(1).values + half_unit * sizes.max(1).values)).all()
    plain = (filters.bfloat16().double() - filters).sum((1, 2, 3)).abs()
    assert off.mean() < plain.mean() / 10
    moved, largest = (rounded - filters).abs().flatten(1), sizes.max(1, keepdim=True).values
    assert (moved <= 1.01 * half_unit * (sizes + largest)).all()


def test_depthwise_filters_keep_their_sums_in_low_precision() -> None:
    module = nn.Sequential(nn.Conv2d(64, 64, 5, groups=64))
    with torch.no_grad():
        filters = torch.randn(64, 1, 5, 5, generator=torch.Generator().manual_seed(0))
        module[0].weight.copy_(filters - filters.mean((2, 3), keepdim=True))
        module[0].bias.zero_()
    flat = torch.ones(1, 64, 5, 5)
    traced = trace(module)
    nothing = UnitInput(flat.shape, torch.zeros(64, dtype=torch.float64))
    with torch.inference_mode():
        low = fold_for_inference(traced, find_units(traced), [nothing], low_precision_from=0)(flat)
        rounded = module[0].weight.bfloat16().double().sum((1, 2, 3)).abs().mean()
        assert low.double().abs().mean() < rounded / 10


@pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="this processor has no bfloat16: biases are rounded")
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_rounding_the_weights_changes_no_channels_mean(groups: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 16, 3, groups=groups), nn.BatchNorm2d(16)).eval()
    x = (torch.rand(4, 8, 40, 40) + 3 * torch.rand(8, 1, 1)).bfloat16().float()
    traced = trace(module)
    units = find_units(traced)
    (seen,) = record_inputs(traced, units, x)
    assert torch.allclose(seen.mean, x.double().mean((0, 2, 3)))

    def change(mean: Tensor) -> float:
        with torch.inference_mode():
            low = fold_for_inference(traced, units, [UnitInput(x.shape, mean)], low_precision_from=0)
            return float((low(x).double() - module(x)).mean((0, 2, 3)).abs().mean())

    assert change(seen.mean) < 1e-4
    if groups < 8:
        assert change(torch.zeros(8, dtype=torch.float64)) > 5 * change(seen.mean)


def gradients(
    module: nn.Module, network: Callable[[Tensor], Any], x: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(output, gradient of the input, gradients of the parameters by their own names)."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = network(x)
    y = torch.cat([part.flatten(1) for part in y.values()], 1) if isinstance(y, dict) else y
    y = y.double()
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    (y * weights + y.square()).sum().backward()
    assert x.grad is not None
    return (
        y.detach(),
        x.grad.double(),
        {n: p.grad.double().clone() for n, p in module.named_parameters() if p.grad is not None},
    )


def assert_trains_alike(module: nn.Module, x: Tensor, *, dtype: torch.dtype, tolerance: float) -> None:
    if dtype == torch.float64:
        module, x = module.double(), x.double()
    buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
    expected = gradients(module, module, x)
    given = gradients(module, fold_for_training(trace(module), dtype), x)
    assert off(given[0], expected[0]) < tolerance
    assert off(given[1], expected[1]) < tolerance
    assert given[2].keys() == expected[2].keys()
    assert len(expected[2]) == len(list(module.parameters()))
    largest = max(float(gradient.norm()) for gradient in expected[2].values())
    for name, gradient in expected[2].items():
        assert off(given[2][name], gradient, 1e-3 * largest) < tolerance, name
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in module.named_buffers())


def off(given: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    return float((given - expected).norm() / (expected.norm() + floor))


def suffix(name: str, boundary: str) -> tuple[nn.Module, Tensor]:
    """(the part behind a boundary, what goes into it)."""
    split = SplittableBackbone(network(name), height=64, width=64)
    with torch.no_grad():
        activation = split.prefix(boundary)(images(4, 64)).contiguous(memory_format=torch.channels_last)
    return split.suffix(boundary), activation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "boundary"),
    [
        ("tf_efficientnet_lite0", "blocks.3"),
        ("resnet18", "layer3"),
        *(
            pytest.param(*more, marks=pytest.mark.exhaustive)
            for more in (
                ("mobilenetv3_large_100", "blocks.4"),
                ("regnety_016", "s3.b14"),
                ("convnext_atto", "stages.2"),
            )
        ),
    ],
)
def test_a_folded_suffix_trains_like_the_original_layers(name: str, boundary: str) -> None:
    assert_trains_alike(*suffix(name, boundary), dtype=torch.float64, tolerance=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "boundary"),
    [
        ("tf_efficientnet_lite0", "blocks.5"),
        pytest.param("mobilenetv3_large_100", "blocks.4", marks=LONG),
        pytest.param("resnet18", "layer3", marks=LONG),
    ],
)
def test_its_gradients_are_as_good_in_float32_and_no_further_off_than_autocasts_in_bfloat16(
    name: str, boundary: str
) -> None:
    module, activation = suffix(name, boundary)
    exact = gradients(module, module, activation)
    single = gradients(module, fold_for_training(trace(module), torch.float32), activation)
    with torch.autocast("cpu", torch.bfloat16):
        usual = gradients(module, module, activation)
        given = gradients(module, fold_for_training(trace(module), torch.bfloat16), activation)

    def error(of: tuple[Tensor, Tensor, dict[str, Tensor]]) -> float:
        one, other = (torch.cat([them[name].flatten() for name in exact[2]]) for them in (of[2], exact[2]))
        return off(one, other)

    assert given[2].keys() == exact[2].keys()
    assert error(single) < 1e-3
    assert off(single[0], exact[0]) < 1e-5
    assert 1e-3 < error(given) < 1.3 * error(usual) + 0.005 < 0.1
    assert off(given[0], exact[0]) < 0.01


def test_a_frozen_norm_stays_frozen_and_the_rest_is_trained() -> None:
    module = lively(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.BatchNorm2d(8)))
    module[1].requires_grad_(False)
    _, _, given = gradients(module, fold_for_training(trace(module), torch.float32), images(channels=8))
    assert sorted(given) == ["0.bias", "0.weight", "3.bias", "3.weight", "4.bias", "4.weight"]


def test_folding_sees_later_changes_of_the_parameters_in_training_and_none_in_inference() -> None:
    module = lively(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()))
    x = images(channels=8)
    training, inference = fold_for_training(trace(module), torch.float32), folded(module, x)
    with torch.no_grad():
        before = module(x)
        module[0].weight.mul_(-1.5)
        module[1].bias.add_(1)
        assert torch.allclose(training(x), module(x), atol=1e-5)
        assert torch.allclose(inference(x), before, atol=1e-5)
