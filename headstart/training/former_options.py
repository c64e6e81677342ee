"""Former names and values of options, which files of earlier versions contain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

RENAMED = {
    "range": "value_range",
    "smoothing": "label_smoothing",
    "jitter": "feature_jitter",
    "balance": "balance_classes",
    "live_norms": "update_batchnorm",
    "gradual": "gradual_unfreezing",
    "remember": "rehearsal",
    "train_old": "train_old_classes",
    "wanted": "target_accuracy",
}
"""Former name -> name of an option. Files written with the former names can be read."""

FORMER_AUTO: dict[str, object] = {
    "backbone": "",
    "weights": "",
    "image_size": 0,
    "cut": "",
    "head_epochs": 0,
    "head_lr": 0.0,
    "unfreeze": "",
    "epochs": 0,
    "lr": 0.0,
    "views": 0,
    "extend": "",
    "rehearsal": "",
}
"""Option -> the value that meant "auto" in files written with the former names; it is None today."""

WITHOUT_EFFECT = ("label_smoothing", "cutmix", "mixup", "feature_jitter")
"""Options of fine-tuning that earlier versions accepted, and did not use, where the backbone stays frozen."""


def with_current_names(document: Mapping[str, Value], former: Mapping[str, str]) -> dict[str, Value]:
    """A mapping from a file of an earlier version, with former names replaced by the current ones.

    Args:
        document: as read from the file.
        former: former name -> current name.
    """
    return {former.get(name, name): value for name, value in document.items()}
