"""Every choice of a run in one place; it is saved with the run and with the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from headstart.errors import OptionError

EffortName = Literal["probe", "quick", "standard", "thorough"]


@dataclass(frozen=True)
class Recipe:
    """What to do; with the data and the weights it decides the result.

    Attributes:
        effort: "probe": everything frozen, a linear classifier on the features; "quick", "standard", "thorough": then
            fine-tuning, ever deeper, while it gains more than noise (see ``training.ladder``).
        backbone: a timm architecture, with or without the tag of its weights; "" for the offline default.
        weights: a file of weights, "" for the architecture's own.
        image_size: side of the input in pixels; 0 for what the weights were trained with.
        pool: how features are pooled, see ``backbone.forward.Pooling``.
        layer: the layer group whose output is pooled; "" for the last.
        unfreeze: the first part that is trained, as ``headstart layers`` lists it, or "all"; "" for what the effort
            tries.
        epochs: of every rung; 0 for what the effort takes.
        lr: learning rate of the head; 0 for the default.
        views: augmented views of each training image that are kept; 0 for what the effort takes.
        fresh_views: a new view in every epoch, instead of ``views`` that return.
        flip: whether a mirrored picture shows the same thing.
        smoothing: share of the target that is spread over all classes; None for what the effort takes.
        cutmix: see ``training.finetune.TuneSettings``; None for what the effort takes.
        mixup: see ``training.finetune.TuneSettings``.
        jitter: see ``training.finetune.TuneSettings``.
        balance: weigh the classes alike, however many images each has.
        gradual: a rung goes on from the weights of the one below (gradual unfreezing), instead of beginning from the
            pretrained weights and the probe.
        val: share of the images for val, where the data come without splits.
        test: share of the images for test, where the data come without splits.
        seed: of splits, folds, views and training; 0 to 2**32 - 1.
    """

    effort: EffortName = "probe"
    backbone: str = ""
    weights: str = ""
    image_size: int = 0
    pool: Literal["auto", "avg", "max", "avgmax", "token"] = "auto"
    layer: str = ""
    unfreeze: str = ""
    epochs: int = 0
    lr: float = 0.0
    views: int = 0
    fresh_views: bool = False
    flip: bool = True
    smoothing: float | None = None
    cutmix: float | None = None
    mixup: float = 0.0
    jitter: float = 0.1
    balance: bool = False
    gradual: bool = False
    val: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if self.effort not in get_args(EffortName):
            raise OptionError(f"effort {self.effort!r}: this version knows {', '.join(get_args(EffortName))}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed {self.seed}: expected 0 to {2**32 - 1:,}.")
        if self.image_size < 0 or 0 < self.image_size < 16:
            raise OptionError(f"image size {self.image_size}: expected at least 16 pixels.")
        for name, high in (
            ("epochs", 10_000),
            ("views", 10_000),
            ("lr", 1),
            ("mixup", 10),
            ("cutmix", 1),
            ("jitter", 1),
        ):
            if not 0 <= (getattr(self, name) or 0) <= high:
                raise OptionError(f"{name} {getattr(self, name)}: expected 0 to {high:,}.")
        if not 0 <= (self.smoothing or 0) < 1:
            raise OptionError(f"smoothing {self.smoothing}: expected 0 or more and less than 1.")
        trains = {"unfreeze": self.unfreeze, "epochs": self.epochs, "views": self.views, "lr": self.lr}
        given = [name for name, value in trains.items() if value]
        if self.effort == "probe" and given:
            raise OptionError(f"{given[0]}: effort 'probe' trains no weight of the backbone; choose another effort.")
        if self.effort != "probe" and (self.layer or self.pool != "auto"):
            raise OptionError("layer, pool: other features than the backbone's own go with effort 'probe' only.")

    def as_json(self) -> dict[str, Any]:
        """A JSON document that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Recipe:
        """Reads what ``as_json`` wrote; entries of newer versions are left aside."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in document.items() if name in known})
