"""Law 1: prefix then suffix equals the whole backbone, at every boundary."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headstart.backbone import shapes
from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.layers import Layout
from headstart.backbone.pooling import Pooling, pooled
from headstart.backbone.split import HEAD, INPUT, SplittableBackbone
from headstart.backbone.tracing import with_features
from headstart.backbone.weights import build_architecture
from headstart.errors import OptionError

BACKBONES = {
    "tf_efficientnet_lite0": 64,
    "mobilenetv2_100": 64,
    "mobilenetv3_large_100": 64,
    "mobilenetv4_conv_small": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnetv2_50": 64,
    "vgg16": 32,
    "legacy_xception": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "tf_efficientnetv2_s": 64,
    "regnety_016": 64,
    "vit_small_patch16_224": 64,
    "vit_small_patch14_dinov2": 98,
    "vit_small_patch16_dinov3": 64,
    "swin_tiny_patch4_window7_224": 224,
}
"""Side of the images, in pixels: small, for the test's sake."""

QUICK = [
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small",
    "resnet18",
    "vit_small_patch16_224",
]
"""One of each kind, for the default tests; every network at every boundary is tested exhaustively."""


def lively(name: str, side: int) -> nn.Module:
    """The network with weights and statistics that let no branch vanish, in double precision."""
    module = build_architecture(name, image_size=side if side != 224 else None).double()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(0.5 + noise if key.endswith(("weight", "var", "gamma")) else 0.2 * noise)
    return module


def assert_law_1(name: str, *, at_most: int) -> None:
    """At that many boundaries, evenly spread, and at the head."""
    side = BACKBONES[name]
    module = lively(name, side)
    split = SplittableBackbone(module, height=side, width=side)
    assert split.obstacle == ""
    assert len(split.boundaries) >= 7
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = -(-len(split.boundaries) // at_most)
    with torch.no_grad():
        whole = module(images)
        close = {"rtol": 0, "atol": 1e-9 * float((whole[0] - whole[1]).abs().max())}
        for boundary in [*split.boundaries[step // 2 : -1 : step], split.boundaries[-1]]:
            activation = split.prefix(boundary.name)(images)
            kept = activation.clone()
            assert tuple(activation.shape[1:]) == boundary.shape
            assert activation.numel() == boundary.bytes_per_image  # two images, two bytes a number
            suffix = split.suffix(boundary.name)
            assert torch.allclose(suffix(activation), whole, **close), boundary
            assert torch.equal(activation, kept), f"the suffix behind {boundary.name} overwrites its input"
            assert torch.allclose(suffix(activation[1:2]), whole[1:2], **close), boundary


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_prefix_then_suffix_equals_the_whole(name: str) -> None:
    assert_law_1(name, at_most=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BACKBONES)
def test_prefix_then_suffix_equals_the_whole_at_every_boundary(name: str) -> None:
    assert_law_1(name, at_most=1000)


DINO = pytest.param("vit_small_patch16_dinov3", marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "resnet18", DINO])
def test_both_sides_share_the_backbones_parameters_and_share_them_out(name: str) -> None:
    module = build_architecture(name, image_size=64)
    split = SplittableBackbone(module, height=64, width=64)
    own = {id(p): p.numel() for p in module.parameters()}
    for boundary in split.boundaries[:-1:3]:
        prefix = {id(p) for p in split.prefix(boundary.name).parameters()}
        suffix = {id(p) for p in split.suffix(boundary.name).parameters()}
        assert prefix | suffix == set(own)
        assert sum(own[p] for p in suffix) == boundary.parameters_after


def test_training_the_suffix_trains_the_backbone_and_nothing_before_the_boundary() -> None:
    module = build_architecture("resnet18", image_size=64)
    split = SplittableBackbone(module, height=64, width=64)
    before = {name: p.clone() for name, p in module.named_parameters()}
    suffix = split.suffix("layer3")
    activation = split.prefix("layer3")(torch.randn(4, 3, 64, 64)).detach()
    optimizer = torch.optim.SGD(suffix.parameters(), lr=0.1)
    suffix(activation).square().mean().backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"layer4"}


def test_boundaries_come_from_stem_to_head_with_growing_cost_and_shrinking_rest() -> None:
    module = build_architecture("tf_efficientnet_lite0")
    split = SplittableBackbone(module, height=224, width=224)
    names = [b.name for b in split.boundaries]
    groups = ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"]
    assert [name for name in names if name in groups] == groups
    assert names[-1] == HEAD
    costs = [b.cost_before for b in split.boundaries]
    rest = [b.parameters_after for b in split.boundaries]
    assert costs == sorted(costs)
    assert rest == sorted(rest, reverse=True)
    assert 0.62 < next(b.cost_before for b in split.boundaries if b.name == "blocks.4") < 0.64
    assert next(b.shape for b in split.boundaries if b.name == "blocks.5") == (192, 7, 7)
    assert next(b.bytes_per_image for b in split.boundaries if b.name == "blocks.5") == 2 * 192 * 7 * 7
    assert (split.boundaries[-1].shape, split.boundaries[-1].parameters_after) == ((1280,), 0)


def test_a_backbone_that_cannot_be_traced_offers_the_head_alone_and_says_why() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1 = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer1(x)
            return (x if x.mean() > 0 else -x).mean((2, 3))

    module = Moody().eval()
    split = SplittableBackbone(module, height=8, width=8)
    assert [b.name for b in split.boundaries] == [HEAD]
    assert "cannot trace" in split.obstacle
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(split.suffix(HEAD)(split.prefix(HEAD)(images)), module(images))
    with pytest.raises(OptionError, match=r"'layer1'.*head.*cannot trace"):
        split.prefix("layer1")


def test_splitting_leaves_the_network_as_it_was() -> None:
    module = build_architecture("resnet18", image_size=64).train()
    module.get_submodule("bn1").eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    SplittableBackbone(module, height=64, width=64)
    assert module.training
    assert not module.get_submodule("bn1").training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.slow
def test_a_copy_has_the_same_boundaries_and_separate_weights() -> None:
    module = lively("resnet18", 64)
    split = SplittableBackbone(module, height=64, width=64)
    copied = split.copied()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert copied.boundaries == split.boundaries
    with torch.no_grad():
        expected = module(images)
        assert torch.equal(copied.suffix("layer2")(copied.prefix("layer2")(images)), expected)
        for parameter in copied.suffix("layer2").parameters():
            parameter.zero_()
        assert not torch.equal(copied.suffix("layer2")(split.prefix("layer2")(images)), expected)
        assert torch.equal(module(images), expected)


ENDED = ["tf_efficientnet_lite0", "vgg16", "resnetv2_50", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pool"), [("tf_efficientnet_lite0", "flatten"), ("resnet18", "avg")])
def test_a_backbone_that_ends_early_can_be_cut_before_its_end(name: str, pool: Pooling) -> None:
    """Law 1, where the backbone is truncated and pooled otherwise."""
    assert_law_1_ended(name, pool)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "pool"), list(zip(ENDED, ["none", "flatten", "avgmax", "token", "avg"], strict=True)))
def test_backbones_that_end_early_can_be_cut_before_their_end(name: str, pool: Pooling) -> None:
    assert_law_1_ended(name, pool)


def assert_law_1_ended(name: str, pool: Pooling) -> None:
    side = BACKBONES[name]
    module = lively(name, side)
    plain = SplittableBackbone(module, height=side, width=side)
    inner = [b for b in plain.boundaries if b.name not in (INPUT, HEAD)]
    end, before = inner[len(inner) * 2 // 3], inner[len(inner) // 3]
    split = SplittableBackbone(module, height=side, width=side, spec=FeatureSpec(pool, end.name))
    names = [b.name for b in split.boundaries][1:-1]
    assert names == [b.name for b in inner[: len(names)]]
    assert len(inner) * 2 // 3 - 1 <= len(names) <= len(inner) * 2 // 3  # no weights may lie right before the end
    assert split.boundaries[0].parameters_after < sum(p.numel() for p in module.parameters())
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layout = Layout.of(module)
    with torch.no_grad():
        at_end = plain.prefix(end.name)(images)
        expected = pooled(at_end, pool, layout.channels_last, layout.prefix_tokens)
        assert tuple(expected.shape[1:]) == split.boundaries[-1].shape
        close = {"rtol": 0, "atol": 1e-9 * float(expected.abs().max())}
        assert torch.allclose(split.whole()(images), expected, **close)
        activation = split.prefix(before.name)(images)
        assert torch.allclose(split.suffix(before.name)(activation), expected, **close)
        features, tapped = split.tapped(before.name)(images)
        assert torch.allclose(features, expected, **close)
        assert torch.equal(tapped, activation)
    behind = [n for _, own in split.parts(before.name) for n in own]
    assert sum(module.get_parameter(n).numel() for n in behind) == next(
        b.parameters_after for b in split.boundaries if b.name == before.name
    )


LAYERED = {
    "tf_efficientnet_lite0": ("blocks.5", "blocks.4"),
    "resnet18": ("layer3", "layer2"),
    "convnext_tiny": ("stages.2", "stages.1"),
    "vit_small_patch16_224": ("blocks.8", "blocks.5"),
    "swin_tiny_patch4_window7_224": ("layers.2", "layers.1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_small_patch16_224"])
def test_features_of_earlier_layers_bypass_later_boundaries(name: str) -> None:
    assert_law_1_with_layers(name, LAYERED[name], at_most=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LAYERED)
def test_features_of_earlier_layers_bypass_every_later_boundary(name: str) -> None:
    assert_law_1_with_layers(name, LAYERED[name], at_most=1000)


def assert_law_1_with_layers(name: str, layers: tuple[str, ...], *, at_most: int) -> None:
    """Law 1 where features of earlier layers are appended; a boundary behind one of them has its features beside it."""
    side = BACKBONES[name]
    module = lively(name, side)
    plain = SplittableBackbone(module, height=side, width=side)
    split = SplittableBackbone(module, height=side, width=side, spec=FeatureSpec(layers=layers))
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layout = Layout.of(module)
    with torch.no_grad():
        means = [pooled(plain.prefix(n)(images), "avg", layout.channels_last, layout.prefix_tokens) for n in layers]
        expected = torch.cat([module(images), *means], 1)
        close = {"rtol": 0, "atol": 1e-9 * float(expected.abs().max())}
        assert torch.allclose(split.whole()(images), expected, **close)
        assert torch.allclose(with_features(module, FeatureSpec(layers=layers))(images), expected, **close)
        bypassed = [b for b in split.boundaries if b.beside]
        assert [len(b.beside) for b in bypassed] == sorted(len(b.beside) for b in bypassed)
        assert len(bypassed[-1].beside) == 2
        for boundary in bypassed[:: -(-len(bypassed) // at_most)]:
            rows = split.prefix(boundary.name)(images)
            assert tuple(rows.shape[1:]) == boundary.shape
            kept = rows.clone()
            assert torch.allclose(split.suffix(boundary.name)(rows), expected, **close), boundary
            assert torch.equal(rows, kept), f"the suffix behind {boundary.name} overwrites its input"
            activation, beside = boundary.activations(rows)
            assert torch.equal(activation, plain.prefix(boundary.name)(images))
            assert beside.shape[1] == sum(boundary.beside)
            before, after = split.halves(boundary.name)
            assert torch.allclose(after(*before(images)), expected, **close)
            features, tapped, *others = split.tapped(boundary.name)(images)
            assert torch.allclose(torch.cat([tapped.flatten(1), *others], 1), rows, **close)
            assert torch.allclose(features, expected, **close)
        first, last = bypassed[0].name, bypassed[-1].name
        assert torch.allclose(split.segment(first, last)(split.prefix(first)(images)), split.prefix(last)(images))


@pytest.mark.slow
def test_another_pooling_is_one_of_the_last_map() -> None:
    module = lively("resnet18", 64)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        last = module.forward_features(images)  # type: ignore[operator]
        split = SplittableBackbone(module, height=64, width=64, spec=FeatureSpec("max"))
        assert torch.allclose(split.whole()(images), last.amax((2, 3)))
        assert torch.allclose(split.suffix("layer3")(split.prefix("layer3")(images)), last.amax((2, 3)))


def test_an_end_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'layer9'.*layer1, layer2"):
        SplittableBackbone(build_architecture("resnet18"), height=64, width=64, spec=FeatureSpec(cut="layer9"))
    with pytest.raises(OptionError, match=r"cannot be read at 'layer9'.*layer3"):
        SplittableBackbone(build_architecture("resnet18"), height=64, width=64, spec=FeatureSpec(layers=("layer9",)))
    with pytest.raises(OptionError, match=r"layers layer9: the backbone has no such layer"):
        with_features(build_architecture("resnet18"), FeatureSpec(layers=("layer9",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", pytest.param("vit_small_patch16_224", marks=pytest.mark.exhaustive)]
)
def test_shapes_and_costs_on_the_meta_device_are_those_of_fake_tensors(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = SplittableBackbone(build_architecture(name, image_size=64), height=64, width=64)
    monkeypatch.setattr(shapes, "record_on_meta", shapes.record_with_fake_tensors)
    slow = SplittableBackbone(build_architecture(name, image_size=64), height=64, width=64)
    assert len(fast.boundaries) > 3
    assert fast.boundaries == slow.boundaries


@pytest.mark.slow
def test_cutting_a_usual_backbone_needs_no_fake_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their first use imports PyTorch's compiler: two seconds."""
    monkeypatch.setattr(shapes, "record_with_fake_tensors", lambda *_: pytest.fail("fake tensors were used"))
    for name in ("tf_efficientnet_lite0", "resnet18"):
        split = SplittableBackbone(build_architecture(name, image_size=64), height=64, width=64)
        assert not split.obstacle
        assert len(split.boundaries) > 3
