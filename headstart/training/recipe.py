"""Every choice of a run in one place; it is saved with the run and with the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from headstart.errors import OptionError

Effort = Literal["probe"]


@dataclass(frozen=True)
class Recipe:
    """What to do; with the data and the weights it decides the result.

    Attributes:
        effort: "probe": everything frozen, a linear classifier on the features.
        backbone: a timm architecture, with or without the tag of its weights; "" for the offline default.
        weights: a file of weights, "" for the architecture's own.
        image_size: side of the input in pixels; 0 for what the weights were trained with.
        pool: how features are pooled, see ``backbone.forward.Pooling``.
        layer: the layer group whose output is pooled; "" for the last.
        balance: weigh the classes alike, however many images each has.
        val: share of the images for val, where the data come without splits.
        test: share of the images for test, where the data come without splits.
        seed: of splits and of cross-validation's folds; 0 to 2**32 - 1.
    """

    effort: Effort = "probe"
    backbone: str = ""
    weights: str = ""
    image_size: int = 0
    pool: Literal["auto", "avg", "max", "avgmax", "token"] = "auto"
    layer: str = ""
    balance: bool = False
    val: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.effort not in get_args(Effort):
            raise OptionError(f"effort {self.effort!r}: this version knows {', '.join(get_args(Effort))}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed {self.seed}: expected 0 to {2**32 - 1:,}.")
        if self.image_size < 0 or 0 < self.image_size < 16:
            raise OptionError(f"image size {self.image_size}: expected at least 16 pixels.")

    def as_json(self) -> dict[str, Any]:
        """A JSON document that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Recipe:
        """Reads what ``as_json`` wrote; entries of newer versions are left aside."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in document.items() if name in known})
