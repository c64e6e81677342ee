from __future__ import annotations

import pytest
import torch
from torch import nn

from headstart.backbone.layers import freeze, group_names, layer_groups
from headstart.backbone.weights import build_architecture
from headstart.errors import OptionError


@pytest.mark.parametrize(
    ("name", "size", "some"),
    [
        ("tf_efficientnet_lite0", 64, ["conv_stem", "blocks.0", "blocks.6", "conv_head", "classifier"]),
        ("resnet18", 64, ["conv1", "layer1", "layer4", "fc"]),
        ("convnext_atto", 64, ["stem", "stages.0", "stages.3", "head"]),
        ("test_vit", None, ["patch_embed", "blocks.0", "norm", "head"]),
        ("densenet121", 64, ["features.conv0", "features.denseblock4", "classifier"]),
        ("mobilenetv3_small_050", 64, ["conv_stem", "blocks.0", "conv_head", "classifier"]),
    ],
)
def test_groups_come_in_execution_order_and_hold_every_weight(name: str, size: int | None, some: list[str]) -> None:
    module = build_architecture(name, classes=10)
    side = size or module.default_cfg["input_size"][1]  # type: ignore[index,operator]
    groups = layer_groups(module, input_shape=(3, side, side))
    names = [group.name for group in groups]
    assert [n for n in names if n in some] == some
    assert sum(g.parameters for g in groups) == sum(p.numel() for p in module.parameters())
    batch_norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert sum(g.statistics for g in groups) == sum(2 * m.num_features for m in batch_norms)
    assert groups[-1].output_shape == (10,)


def test_shapes_are_those_that_the_network_gives() -> None:
    module = build_architecture("resnet18", classes=3)
    shapes = {g.name: g.output_shape for g in layer_groups(module, input_shape=(3, 96, 64))}
    assert shapes["conv1"] == (64, 48, 32)
    assert shapes["layer2"] == (128, 12, 8)
    assert shapes["global_pool"] == (512,)


def test_listing_leaves_weights_statistics_and_mode_as_they_were() -> None:
    module = build_architecture("resnet18", classes=3).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    layer_groups(module, input_shape=(3, 64, 64))
    assert module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_freezing_a_group_freezes_all_beneath_it() -> None:
    module = build_architecture("resnet18", classes=3)
    freeze(module, trainable=["layer4", "fc"])
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"layer4", "fc"}
    groups = {g.name: g for g in layer_groups(module, input_shape=(3, 64, 64))}
    assert groups["layer3"].trainable == 0
    assert groups["layer4"].trainable == groups["layer4"].parameters
    freeze(module)
    assert not any(p.requires_grad for p in module.parameters())
    with pytest.raises(OptionError, match=r"named layer9.*layer1"):
        freeze(module, trainable=["layer9"])
    assert "layer1" in group_names(module)
