"""Every choice of a run in one place; it is saved with the run and with the model."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from headstart.backbone.pooling import Pooling
from headstart.errors import OptionError
from headstart.hub import is_address
from headstart.training.heads import LINEAR, parse_heads
from headstart.trust.calibration import WANTED

EffortName = Literal["probe", "quick", "standard", "thorough"]
EffortChoice = Literal["auto", "probe", "quick", "standard", "thorough"]
FINE_TUNING = ("unfreeze", "epochs", "lr", "views", "fresh_views", "live_norms", "gradual", "scratch")
"""Options that concern fine-tuning: each makes effort "auto" mean "quick", and none goes with "probe"."""

PRETRAINED = "pretrained"
"""In place of a model to extend: the classifier that came with the backbone's weights."""

RangeName = Literal["full", "data"]

ProbeName = Literal["logistic", "svm", "rbf", "knn", "centroid"]


@dataclass(frozen=True)
class Recipe:
    """What to do; with the data and the weights it decides the result.

    Attributes:
        effort: "probe": everything frozen, a linear classifier on the features; "quick", "standard", "thorough": then
            fine-tuning, ever deeper, while it gains more than noise (see ``training.ladder``). "auto" becomes "quick"
            where an option of fine-tuning is given (``FINE_TUNING``), else "probe".
        backbone: a timm architecture, with or without the tag of its weights; "" for the offline default.
        weights: a file of weights, "" for the architecture's own.
        image_size: side of the input in pixels; 0 for what the weights were trained with.
        pool: how features are pooled, see ``backbone.pooling.Pooling``.
        cut: the boundary at which the backbone ends, as ``headstart layers`` lists it; "" for its own end.
        probe: what is fitted on frozen features, see ``training.fit_head``: "logistic", "svm" (linear), "rbf" (a
            Gaussian kernel), "knn" (cosine), "centroid" (nearest class mean).
        head: "linear", or heads that are trained by steps, with "," between them (see ``training.heads.HeadSpec``);
            the best by validation is kept.
        head_epochs: passes over the training images for those; 0 for the default.
        head_lr: their learning rate; 0: several are tried at once, and the best by validation is kept.
        single_logit: two classes share one logit with binary cross-entropy, instead of a softmax over two.
        unfreeze: the first part that is trained, as ``headstart layers`` lists it, or "all"; "" for what the effort
            tries.
        epochs: of every rung; 0 for what the effort takes.
        lr: learning rate of the head and the last part in fine-tuning; 0 for the default.
        views: augmented views of each training image that are kept; 0 for what the effort takes.
        fresh_views: a new view in every epoch, instead of ``views`` that return.
        range: what becomes black and white of images of more than 8 bits per channel: "full", the file's full scale, or
            "data", the 0.5th and 99.5th percentile of the training images' values.
        flip: whether a mirrored picture shows the same thing.
        smoothing: share of the target that is spread over all classes; None for what the effort takes, or, where an
            image may bear several labels, for none.
        cutmix: see ``training.finetune.TuneSettings``; None likewise.
        mixup: see ``training.finetune.TuneSettings``.
        jitter: see ``training.finetune.TuneSettings``.
        balance: weigh the classes alike, however many images each has.
        live_norms: BatchNorm behind the freeze boundary goes on learning its statistics.
        scratch: random weights instead of pretrained ones, and everything is trained; for comparison.
        gradual: a rung goes on from the weights of the one below (gradual unfreezing), instead of beginning from the
            pretrained weights and the probe.
        extend: a run or a model file whose classes stay, and the data's are added behind them; or "pretrained": the
            classes that the backbone's weights came with. "" for none.
        remember: a folder of pictures of what that model knows; their labels are not needed. "" for none.
        train_old: the rows of the classes that stay may move as well.
        wanted: share of its answers that is to be right, in (0, 1): below the probability from which on that holds on
            val, the model is unsure and says so.
        val: share of the images for val, where the data come without; None for the default, see
            ``data.splits.SplitShares``.
        test: share of the images for test, where the data come without splits; None likewise.
        seed: of splits, folds, views and training; 0 to 2**32 - 1.
    """

    effort: EffortChoice = "auto"
    backbone: str = ""
    weights: str = ""
    image_size: int = 0
    pool: Literal["auto", "avg", "max", "avgmax", "token", "flatten"] = "auto"
    cut: str = ""
    probe: ProbeName = "logistic"
    head: str = LINEAR
    head_epochs: int = 0
    head_lr: float = 0.0
    single_logit: bool = False
    unfreeze: str = ""
    epochs: int = 0
    lr: float = 0.0
    views: int = 0
    fresh_views: bool = False
    range: RangeName = "full"
    flip: bool = True
    smoothing: float | None = None
    cutmix: float | None = None
    mixup: float = 0.0
    jitter: float = 0.1
    balance: bool = False
    live_norms: bool = False
    scratch: bool = False
    gradual: bool = False
    extend: str = ""
    remember: str = ""
    train_old: bool = False
    wanted: float = WANTED
    val: float | None = None
    test: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in _field_types().items():
            object.__setattr__(self, name, _as_type(name, getattr(self, name), kind))
        if self.effort not in get_args(EffortChoice):
            raise OptionError(f"effort {self.effort!r}: this version knows {', '.join(get_args(EffortChoice))}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed {self.seed}: expected 0 to {2**32 - 1:,}.")
        if self.image_size < 0 or 0 < self.image_size < 16:
            raise OptionError(f"image size {self.image_size}: expected at least 16 pixels.")
        for name, high in (
            ("epochs", 10_000),
            ("head_epochs", 10_000),
            ("views", 10_000),
            ("lr", 1),
            ("head_lr", 1),
            ("mixup", 10),
            ("cutmix", 1),
            ("jitter", 1),
        ):
            if not 0 <= (getattr(self, name) or 0) <= high:
                raise OptionError(f"{name} {getattr(self, name)}: expected 0 to {high:,}.")
        if not 0 < self.wanted < 1:
            raise OptionError(f"wanted accuracy {self.wanted}: expected more than 0 and less than 1, such as 0.99.")
        if not 0 <= (self.smoothing or 0) < 1:
            raise OptionError(f"smoothing {self.smoothing}: expected 0 or more and less than 1.")
        if self.probe not in get_args(ProbeName):
            raise OptionError(f"probe {self.probe!r}: expected one of {', '.join(get_args(ProbeName))}.")
        if self.range not in get_args(RangeName):
            raise OptionError(f"range {self.range!r}: expected one of {', '.join(get_args(RangeName))}.")
        convolves = bool(parse_heads(self.head)[0].channels)
        if convolves and self.pool != "auto":
            raise OptionError(f"pool {self.pool!r}: a convolution head pools by itself, as in conv1280-avg.")
        if self.head != LINEAR:
            if self.probe != "logistic":
                raise OptionError(
                    f"probe {self.probe!r} and head {self.head!r}: one or the other stands on the features."
                )
        elif self.head_epochs or self.head_lr:
            raise OptionError("head epochs and head lr: a linear head is fitted without steps; choose another --head.")
        given = self._fine_tuning_options()
        if self.effort == "auto":
            implied = given[0] if given and not self.extend else ""
            object.__setattr__(self, "_implied_by", implied)
            object.__setattr__(self, "effort", "quick" if implied else "probe")
        if self.effort == "probe" and given:
            why = "extending a model" if self.extend else "effort 'probe'"
            raise OptionError(f"{given[0]}: {why} trains no weight of the backbone; leave one of the two out.")
        if self.scratch and (self.weights or self.unfreeze not in ("", "all")):
            raise OptionError("scratch: random weights are all trained; name neither weights nor a part to unfreeze.")
        if not self.extend and (self.remember or self.train_old):
            raise OptionError(
                f"{'remember' if self.remember else 'train_old'}: belongs to extend; name a model to extend."
            )
        if self.extend:
            fixed: dict[str, object] = {
                "effort": self.effort != "probe",
                "head": self.head != LINEAR,
                "probe": self.probe != "logistic",
                "single_logit": self.single_logit,
                "balance": self.balance,
                "pool": self.pool != "auto",
                "cut": self.cut,
            }
            if self.extend != PRETRAINED:
                fixed |= {"backbone": self.backbone, "weights": self.weights, "image_size": self.image_size}
                fixed["range"] = self.range != "full"
            if names := [name for name, value in fixed.items() if value]:
                raise OptionError(
                    f"{names[0]}: extending keeps the backbone and the head that the classes have; leave it out."
                )
        if self.effort != "probe" and self.probe in ("rbf", "knn"):
            raise OptionError(
                f"probe {self.probe!r}: fine-tuning goes on from a linear classifier; choose effort 'probe', or probe "
                "logistic, svm or centroid."
            )

    def _fine_tuning_options(self) -> list[str]:
        """Names of the options given that concern fine-tuning alone; views are for a head trained by steps as well."""
        names = [name for name in FINE_TUNING if getattr(self, name)]
        return [name for name in names if name not in ("views", "fresh_views") or self.head == LINEAR]

    @property
    def implied_by(self) -> str:
        """The option that turned effort "auto" into "quick"; "" where the effort was named, or is "probe"."""
        return str(getattr(self, "_implied_by", ""))

    @property
    def is_named_depth(self) -> bool:
        """Whether what is to be trained was named: it is kept then, whatever the probe gave."""
        return bool(self.unfreeze) or self.scratch

    @classmethod
    def of(cls, recipe: Recipe | None, choices: dict[str, Any]) -> Recipe:
        """A whole recipe, or one of single choices.

        Raises:
            OptionError: both are given, a choice does not exist, or a value has the wrong type.
        """
        if recipe is not None and not isinstance(recipe, Recipe):
            raise OptionError(f"recipe: expected a headstart.Recipe, got {type(recipe).__name__}.")
        if recipe is not None and choices:
            raise OptionError(f"give a recipe or single choices ({', '.join(choices)}), not both.")
        try:
            return recipe or cls(**choices)
        except TypeError as error:
            known = ", ".join(cls.__dataclass_fields__)
            raise OptionError(f"{str(error).split(') ')[-1]}. A recipe has: {known}.") from error

    @property
    def pooling(self) -> Pooling:
        """``pool``, or none where the head convolves the map."""
        return "none" if parse_heads(self.head)[0].channels else self.pool

    @property
    def least_classes(self) -> int:
        """That the data must have: a model is extended by one, a new one tells two apart."""
        return 1 if self.extend else 2

    @property
    def paths(self) -> dict[str, str]:
        """The choices that name a file or folder of this machine."""
        given = {name: getattr(self, name) for name in ("weights", "extend", "remember")}
        return {name: path for name, path in given.items() if path and path != PRETRAINED and not is_address(path)}

    def without_paths(self) -> Recipe:
        """The recipe to publish: of files and folders their names alone."""
        names: dict[str, Any] = {name: _last_part(path) for name, path in self.paths.items()}
        return replace(self, **names)

    def as_json(self) -> dict[str, Any]:
        """A JSON document that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Recipe:
        """Reads what ``as_json`` wrote; entries of newer versions are left aside."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in document.items() if name in known})


def _last_part(path: str) -> str:
    """The name of a file or folder, by the rules of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "."


@cache
def _field_types() -> dict[str, Any]:
    return get_type_hints(Recipe)


def _as_type(name: str, value: Any, annotation: Any) -> Any:
    """A choice as the type that its field declares; NumPy's numbers and paths become plain ones, for JSON.

    Raises:
        OptionError: the value has another type; ``True`` is not a number, and "3" is not 3.
    """
    kinds = (str,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)
    if value is None and type(None) in kinds:
        return None
    is_bool = isinstance(value, bool) or type(value).__name__ == "bool"  # numpy.bool is no subclass of bool
    if bool in kinds and is_bool:
        return bool(value)
    if int in kinds and isinstance(value, Integral) and not is_bool:
        return int(value)
    if float in kinds and isinstance(value, Real) and not is_bool:
        with suppress(OverflowError):  # a whole number beyond 1e308
            return float(value)
    if str in kinds and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    words = {str: "text", bool: "True or False", int: "a whole number", float: "a number", type(None): "None"}
    shown = " ".join(repr(value).split())[:60]
    remedy = " Train a module of your own in a loop of your own, see hs.prepare." if name == "head" else ""
    raise OptionError(f"{name}: expected {' or '.join(words[kind] for kind in kinds)}, got {shown}.{remedy}")
