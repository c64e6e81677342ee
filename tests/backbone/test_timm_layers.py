"""Layers of timm that need special treatment."""

from __future__ import annotations

import copy

import pytest
import torch

from headstart.backbone.weights import build_architecture


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "biases"),
    [("tiny_vit_5m_224", "stages.1.blocks.0.attn"), ("efficientvit_m0", "stages.0.blocks.0.mixer.m.attn")],
)
def test_position_biases_are_trained_in_inference_mode_and_no_result_is_of_old_ones(
    architecture: str, biases: str
) -> None:
    """Timm caches them in inference mode, in which layers are fine-tuned; torch.fx does not trace into these layers."""
    module = build_architecture(architecture).train().eval()
    attention = module.get_submodule(biases)
    for parameter in attention.parameters():  # some are 0 where nothing has been trained
        torch.nn.init.normal_(parameter)
    weights = attention.attention_biases
    seen = []
    attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    images = torch.randn(1, 3, 224, 224)
    for _ in range(2):
        module(images)
        seen.pop().square().sum().backward()
        assert weights.grad is not None
        assert weights.grad.abs().max() > 0
        weights.grad = None
    with torch.no_grad():
        module(images)
        before = seen.pop()
        weights += torch.randn_like(weights)
        module(images)
        assert not torch.equal(seen.pop(), before)
    assert not copy.deepcopy(attention).attention_bias_cache
