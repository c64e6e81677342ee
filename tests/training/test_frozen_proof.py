"""Digests of tensors, and their comparison."""

from __future__ import annotations

import pytest
import torch

from headstart.errors import TrainingError
from headstart.training.frozen_proof import combined, digests_of, require_unchanged, tensors_of


def test_digests_tell_values_shapes_and_dtypes_apart() -> None:
    tensors = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.int32),
        torch.tensor([0.0, 0.0, 0.0, -0.0]),
    ]
    assert len({digests_of({"t": tensor})["t"] for tensor in tensors}) == 4
    one = digests_of({"a": tensors[0], "b": tensors[1]})
    assert combined(one) == combined(dict(reversed(one.items())))
    assert combined(one) != combined({"a": one["b"], "b": one["a"]})
    with pytest.raises(TrainingError, match="here: c changed"):
        require_unchanged(one, one | {"c": "new"}, where="here")
    with pytest.raises(TrainingError, match="here: a changed"):
        require_unchanged(one, {"b": one["b"]}, where="here")


def test_buffers_that_a_state_dict_leaves_out_count_as_well() -> None:
    module = torch.nn.Module()
    module.register_buffer("table", torch.zeros(2), persistent=False)
    assert set(tensors_of(module)) == {"table"}
