from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.backbone.pooling import Pooling
from headstart.backbone.weights import fingerprint, random_backbone
from headstart.engine.device import resolve_device
from headstart.engine.onnx_engine import OnnxEngine
from headstart.engine.plan import EnginePlan
from headstart.engine.select import choose_engine
from headstart.engine.streaming import run_in_batches
from headstart.engine.torch_engine import TorchEngine
from headstart.errors import OptionError


def pixels(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_features_equal_timms_own_on_normalised_pixels() -> None:
    backbone = random_backbone("resnet18", image_size=64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.preprocessing.mean, backbone.preprocessing.std))
    batch = torch.from_numpy(pixels(3, 64))
    expected = backbone.module((batch.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert torch.allclose(FeatureNet(backbone)(batch), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_every_pooling_is_what_its_name_says(name: str) -> None:
    backbone = random_backbone(name)
    batch = torch.from_numpy(pixels(2, backbone.preprocessing.height))
    nets = {
        pool: FeatureNet(backbone, FeatureSpec(pool)) for pool in get_args(Pooling) if pool not in ("token", "none")
    }
    maps = torch.stack([nets["avg"](batch), nets["max"](batch)])
    assert torch.allclose(nets["avgmax"](batch), torch.cat(list(maps), 1))
    assert (maps[1] >= maps[0]).all()
    flat, whole = nets["flatten"](batch), FeatureNet(backbone, FeatureSpec("none"))(batch)
    assert torch.allclose(flat, whole.flatten(1))
    assert feature_shape(FeatureNet(backbone, FeatureSpec("none"))) == whole.shape[1:]
    assert feature_shape(nets["avgmax"])[0] == 2 * feature_shape(nets["avg"])[0]
    if name == "test_vit":
        token = FeatureNet(backbone, FeatureSpec("token"))(batch)
        tokens = backbone.module.forward_features((batch.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)  # type: ignore[operator]
        assert torch.allclose(token, tokens[:, 0], atol=1e-4)
    else:
        with pytest.raises(OptionError, match="no class token"):
            FeatureNet(backbone, FeatureSpec("token"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"), [("tf_efficientnet_lite0", "blocks.3"), ("resnet18", "layer2"), ("test_vit", "blocks.1")]
)
def test_an_inner_layer_gives_its_pooled_output(name: str, layer: str) -> None:
    backbone = random_backbone(name, image_size=None if "vit" in name else 64)
    batch = torch.from_numpy(pixels(2, backbone.preprocessing.height))
    net = FeatureNet(backbone, FeatureSpec(cut=layer))
    seen: list[torch.Tensor] = []
    hook = backbone.module.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output))
    FeatureNet(backbone)(batch)
    hook.remove()
    inner = seen[0]
    expected = inner.mean((2, 3)) if inner.ndim == 4 else inner[:, Layout.of(backbone.module).prefix_tokens :].mean(1)
    assert torch.allclose(net(batch), expected, atol=1e-5)


def test_wrong_pooling_and_layer_are_refused_with_what_there_is() -> None:
    backbone = random_backbone("test_resnet")
    with pytest.raises(OptionError, match="avgmax"):
        FeatureNet(backbone, FeatureSpec("median"))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"'layer9'.*layer1"):
        FeatureNet(backbone, FeatureSpec(cut="layer9"))


def test_running_the_frozen_pass_changes_no_weight_and_no_statistic() -> None:
    """Law 3, as far as the probe goes."""
    backbone = random_backbone("resnet18", image_size=64)
    engine = TorchEngine(FeatureNet(backbone), torch.device("cpu"))
    for seed in range(3):
        engine(pixels(4, 64, seed))
    assert fingerprint(backbone.module.state_dict()) == backbone.fingerprint


@pytest.mark.slow
def test_onnx_runtime_gives_plain_pytorchs_features_at_any_batch_size(tmp_path: Any) -> None:
    net = FeatureNet(random_backbone("test_resnet", image_size=64), FeatureSpec("avgmax", "layer2"))
    plan = EnginePlan(exact="onnxruntime", fast="onnxruntime")
    fast = choose_engine(net, count=10_000, sample=pixels(4, 64), plan=plan, device="cpu")
    plain = choose_engine(net, count=10, sample=pixels(4, 64), device="cpu")
    assert isinstance(fast, OnnxEngine)
    assert isinstance(plain, TorchEngine)
    for count in (1, 7, 70):
        batch = pixels(count, 64, seed=count)
        assert np.allclose(run_in_batches(fast, batch), run_in_batches(plain, batch), atol=1e-4)


def test_devices_by_name() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(OptionError, match="expected auto"):
        resolve_device("tpu")
    for name in ("cpu:x", "cuda:-1", "mps:1:2", "cuda:", "cpu:99999999999", "cuda:999"):
        with pytest.raises(OptionError, match="device"):
            resolve_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="not available"):
            resolve_device("cuda")
