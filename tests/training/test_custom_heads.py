from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

from headstart.errors import ModelFileError, OptionError
from headstart.training.custom_heads import describe
from headstart.training.heads import head_from


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (nn.Linear(6, 3, bias=False), (6,)),
        (nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(6, eps=1e-3), last=nn.Linear(6, 3))), (6,)),
        (nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(0.2)), nn.Linear(5, 3)), (6,)),
        (nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.GELU("tanh"), nn.Flatten(), nn.Linear(24, 3)), (4, 4, 4)),
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.LayerNorm(4, bias=False), nn.Linear(4, 3)),
            (4, 4, 4),
        ),
        (nn.Sequential(nn.GroupNorm(2, 6), nn.Identity(), nn.Linear(6, 3)), (6,)),
    ],
    ids=["linear", "named", "nested", "convolution", "pooling", "group norm"],
)
def test_a_custom_head_comes_back_from_its_description(head: nn.Module, shape: tuple[int, ...]) -> None:
    describe(head.eval())
    about = json.loads(json.dumps(head.about))
    again = head_from(about, head.state_dict(), 3)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), head(x))
    assert [type(part) for part in again.modules()] == [type(part) for part in head.modules()]
    assert again.about == about


@pytest.mark.parametrize(
    "module",
    [
        {"layer": "Linear", "arguments": {"in_features": 10**12, "out_features": 10**6}},
        {"layer": "Linear", "arguments": {"in_features": "x", "out_features": 3}},
        {"layer": "Linear", "arguments": {"in_features": 6, "out_features": -3}},
        {"layer": "__import__", "arguments": {}},
        {"layer": "Sequential", "parts": [["0"]]},
        {"layer": "Sequential", "parts": [[["a"], {"layer": "ReLU", "arguments": {}}]]},
        {"layer": "ReLU"},
        [],
        None,
    ],
    ids=repr,
)
def test_a_damaged_description_of_a_head_is_one_error_and_takes_no_memory(module: object) -> None:
    tensors = nn.Linear(6, 3).state_dict()
    deep: dict[str, object] = {"layer": "ReLU", "arguments": {}}
    for _ in range(2000):
        deep = {"layer": "Sequential", "parts": [["0", deep]]}
    for own in (module, deep):
        with pytest.raises(ModelFileError, match="the head cannot be built from its description"):
            head_from({"kind": "modules", "module": own}, tensors, 3)


def test_a_layer_with_a_hook_or_with_other_weights_is_refused() -> None:
    hooked = nn.Linear(6, 3)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(OptionError, match="Linear with hooks"):
        describe(hooked)
    more = nn.Sequential(nn.Linear(6, 3))
    more.register_parameter("scale", nn.Parameter(torch.ones(3)))
    with pytest.raises(OptionError, match="weights outside its layers"):
        describe(more)
