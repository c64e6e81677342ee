"""Recipe: every option of a training run, declared once, and saved with the run and with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, Literal, get_type_hints

from headstart.errors import OptionError
from headstart.files import last_part
from headstart.hub import is_address
from headstart.training.former_options import FORMER_AUTO, RENAMED, WITHOUT_EFFECT, with_current_names
from headstart.training.head_spec import LINEAR
from headstart.training.option import Name, Option, Range, as_type, check_limits, declaration_of, option, python_name
from headstart.training.recipe_properties import PoolName, RecipeProperties
from headstart.training.recipe_rules import (
    LOGISTIC,
    PRETRAINED,
    check_combinations,
    fine_tuning_options,
)

__all__ = ["LOGISTIC", "PRETRAINED", "PoolName", "Recipe", "check_options", "defaults", "option_types", "options_of"]

EffortName = Literal["auto", "probe", "quick", "standard", "thorough", "deep"]
ProbeName = Literal["logistic", "svm", "rbf", "knn", "centroid"]
RangeName = Literal["full", "data"]
TuneName = Literal["auto", "full", "bias-norm", "lora"]
FitName = Literal["auto", "crop", "pad", "squash"]

LORA_RANK = 8
"""Default rank of LoRA, as in most comparisons on vision transformers; not measured here."""

_COUNT = Range(1, 10_000)
_RATE = Range(0, 1, excludes_low=True)


@dataclass(frozen=True)
class Recipe(RecipeProperties):
    """Options of a training run; together with the data and the weights they decide the result.

    Each field is declared with its group, default, range and help; ``docs/options.md`` lists them. None means that the
    value is chosen automatically. ``effort`` "auto" becomes "quick" if an option of fine-tuning is given, and "probe"
    otherwise.

    Raises:
        OptionError: a value has the wrong type or is out of range, or two options contradict each other.

    Examples:
        >>> recipe = hs.Recipe(effort="quick", seed=1)
        >>> recipe.effort, recipe.seed, recipe.flip
        ('quick', 1, True)

        ``hs.train("flowers/", recipe=recipe)`` is the same as ``hs.train("flowers/", effort="quick", seed=1)``.
    """

    effort: EffortName = option(
        "auto",
        "fine-tuning",
        "How much to train at most. probe: fit a classifier on frozen features. quick, standard, thorough: fine-tune "
        "the last layers as well, and deeper ones as long as the gain is larger than noise. deep: fine-tune a third of "
        "the network at once. auto: quick if a fine-tuning option is given, else probe. Start with probe or quick.",
        is_basic=True,
    )
    backbone: str | None = option(
        None,
        "features",
        "Pretrained network, by its timm name, with or without the tag of its weights. Use a larger one for harder "
        "images; headstart layers NAME shows what it consists of.",
        auto="EfficientNet-Lite0, which needs no download",
        metavar="NAME",
        is_basic=True,
    )
    weights: str | None = option(
        None,
        "features",
        "File with weights for the backbone (.safetensors, .pth, .pt or .bin). Use it for weights that you trained "
        "or downloaded yourself.",
        auto="the pretrained weights of the backbone",
        metavar="FILE",
        is_path=True,
    )
    accept_license: bool = option(
        False,
        "features",
        "Use pretrained weights whose licence restricts their use: no commercial use, research only, or special terms. "
        "Read the licence first.",
    )
    image_size: int | None = option(
        None,
        "features",
        "Side of the square input in pixels. Larger inputs show finer detail and take longer.",
        auto="the size that the weights were trained with",
        limits=Range(16, unit="pixels"),
        metavar="PIXELS",
        is_basic=True,
    )
    fit: FitName = option(
        "auto",
        "features",
        "How an image is fitted into the input. crop: centre crop. pad: the whole image with bars in the mean colour. "
        "squash: the whole image, aspect ratio not kept. auto: as the weights were trained, usually crop. Use pad or "
        "squash if the centre crop cuts off what matters.",
    )
    pool: PoolName = option(
        "auto",
        "features",
        "Pooling of the backbone's feature map into one vector. auto: as the weights were trained.",
    )
    cut: str | None = option(
        None,
        "features",
        "Truncate the backbone after this layer group; headstart layers lists them. Fewer layers are faster, and can "
        "suit images unlike those that the backbone was trained on.",
        auto="the end of the backbone",
        metavar="BOUNDARY",
    )
    layers: str | None = option(
        None,
        "features",
        "Earlier layers whose averages are added to the features: names of layer boundaries, separated by commas "
        "(headstart layers lists them), or last for the last layer alone. They help with images unlike ImageNet.",
        auto="chosen by cross-validation if the classifier is a linear probe, else the last layer alone",
        metavar="LAYERS",
        excludes=("cut", "extend"),
        reason="the features are then those of one layer",
    )
    value_range: RangeName = option(
        "full",
        "data",
        "Scaling of images with more than 8 bits per channel. full: the full range of the file's type. data: the 0.5th "
        "to 99.5th percentile of the training images' values. Use data if such images look nearly black.",
    )
    val: float | None = option(
        None,
        "data",
        "Fraction of the images drawn for validation, if the data have no validation split.",
        auto="0.15; if the data have a test split but no val, 0.15 only if that is at least 100 images",
        metavar="FRACTION",
    )
    test: float | None = option(
        None,
        "data",
        "Fraction of the images drawn for the test set, if the data have no splits. 0: no test set.",
        auto="0.15",
        metavar="FRACTION",
    )
    seed: int = option(
        0,
        "data",
        "Seed of the drawn split, the folds of cross-validation, augmentation and training. Change it to see how much "
        "results vary.",
        limits=Range(0, 2**32 - 1),
    )
    probe: ProbeName = option(
        "logistic",
        "head",
        "Classifier fitted on frozen features: logistic regression, a linear or Gaussian-kernel (rbf) support vector "
        "machine, k nearest neighbours by cosine similarity, or the nearest class mean. Compare them with headstart "
        "compare DATA --only probes.",
    )
    head: str = option(
        LINEAR,
        "head",
        "linear, or a head trained by gradient descent: hidden layer sizes and dropout (1024-512-0.2) or a 1x1 "
        "convolution and pooling (conv1280-flatten). Separate several with commas; the best on validation images is "
        "kept.",
        excludes=("probe",),
        reason="one classifier is fitted on the features",
        metavar="HEAD",
    )
    head_epochs: int | None = option(
        None,
        "head",
        "Epochs for a head trained by gradient descent.",
        auto="10, or 30 with augmented views",
        limits=_COUNT,
        requires="head",
        reason="a linear head is fitted without epochs",
    )
    head_lr: float | None = option(
        None,
        "head",
        "Learning rate for a head trained by gradient descent.",
        auto="several are tried, and the best on validation images is kept",
        limits=_RATE,
        requires="head",
        reason="a linear head is fitted without a learning rate",
    )
    single_logit: bool = option(
        False,
        "head",
        "With two classes, use one logit and binary cross-entropy instead of a softmax over two. Use it if another "
        "program expects one output.",
    )
    balance_classes: bool = option(
        False,
        "head",
        "Weight each class equally in the loss, however many images it has. Use it if rare classes matter as much as "
        "frequent ones.",
    )
    unfreeze: str | None = option(
        None,
        "fine-tuning",
        "Fine-tune this layer group and all later ones (headstart layers lists them), or all.",
        auto="the depths that the chosen effort tries",
        metavar="LAYER",
        is_basic=True,
        needs_fine_tuning=True,
    )
    tune: TuneName = option(
        "auto",
        "fine-tuning",
        "Which weights of the fine-tuned layers are trained. full: all. bias-norm: biases and normalization layers. "
        "lora: a low-rank update of each linear layer, which is merged into its weights. The last two are for vision "
        "transformers: fewer weights are trained, at ten times the learning rate. auto: full.",
        needs_fine_tuning=True,
    )
    lora_rank: int = option(
        LORA_RANK,
        "fine-tuning",
        "Rank of the low-rank updates; requires tune lora. Higher ranks train more weights.",
        limits=Range(1, 1024),
        metavar="RANK",
        needs_fine_tuning=True,
    )
    epochs: int | None = option(
        None,
        "fine-tuning",
        "Epochs of fine-tuning at each depth.",
        auto="set by effort, and more for small data sets",
        limits=_COUNT,
        is_basic=True,
        needs_fine_tuning=True,
    )
    lr: float | None = option(
        None,
        "fine-tuning",
        "Learning rate of the head and the last layer group in fine-tuning. Lower it if the loss rises.",
        auto="set by depth and architecture",
        limits=_RATE,
        needs_fine_tuning=True,
    )
    views: int | None = option(
        None,
        "fine-tuning",
        "Augmented views of each training image, computed once and reused. More views help on small data sets "
        "and take longer.",
        auto="set by effort",
        limits=_COUNT,
        needs_fine_tuning=True,
        also_trains_heads=True,
    )
    fresh_views: bool = option(
        False,
        "fine-tuning",
        "Compute a new augmented view of each image in every epoch instead of reusing views. Slower; use it for long "
        "training.",
        needs_fine_tuning=True,
        also_trains_heads=True,
    )
    flip: bool = option(
        True,
        "fine-tuning",
        "Mirror training images horizontally as augmentation. Turn it off if a mirrored image means something else, "
        "such as text or left and right hands.",
    )
    label_smoothing: float | None = option(
        None,
        "fine-tuning",
        "Label smoothing: fraction of the target spread evenly over all classes.",
        auto="0.05 or 0.1 by effort; 0 with multi-label data",
        limits=Range(0, 1, excludes_high=True),
        metavar="FRACTION",
        needs_fine_tuning=True,
        also_trains_heads=True,
    )
    cutmix: float | None = option(
        None,
        "fine-tuning",
        "CutMix: fraction of the batches in which a rectangle of each image's activations is replaced by that of "
        "another image.",
        auto="set by effort; 0 with multi-label data",
        limits=Range(0, 1),
        metavar="FRACTION",
        needs_fine_tuning=True,
    )
    mixup: float = option(
        0.0,
        "fine-tuning",
        "Mixup: the activations of two images are blended, in batches without CutMix. The value is the parameter "
        "of the Beta distribution from which the proportion is drawn. 0: off; 0.2 is common.",
        limits=Range(0, 10),
        metavar="ALPHA",
        needs_fine_tuning=True,
    )
    feature_jitter: float = option(
        0.1,
        "fine-tuning",
        "Feature augmentation: each channel of the activations is multiplied by a random factor with mean 1 and "
        "this standard deviation. "
        "0: off.",
        limits=Range(0, 1),
        metavar="STD",
        needs_fine_tuning=True,
    )
    update_batchnorm: bool = option(
        False,
        "fine-tuning",
        "Let BatchNorm in the fine-tuned layers normalize by each batch and update its statistics, instead of keeping "
        "the pretrained ones. A training step takes about twice as long.",
        needs_fine_tuning=True,
    )
    gradual_unfreezing: bool = option(
        False,
        "fine-tuning",
        "Continue each depth from the weights of the shallower one, instead of from the pretrained weights.",
        needs_fine_tuning=True,
    )
    scratch: bool = option(
        False,
        "fine-tuning",
        "Train all layers from random weights. Only for comparison with transfer learning.",
        excludes=("weights",),
        reason="training from scratch begins with random weights",
        needs_fine_tuning=True,
    )
    extend: str | None = option(
        None,
        "extending",
        "Keep the classes of this run or model file and add those of the data; pretrained: the classes that the "
        "backbone was trained on.",
        auto="train a new classifier",
        excludes=("head", "probe", "single_logit", "balance_classes", "pool", "cut"),
        reason="extending keeps the backbone and the head of the classes that exist",
        metavar="MODEL",
        is_path=True,
    )
    rehearsal: str | None = option(
        None,
        "extending",
        "Folder of images of the existing classes (labels are not needed), so that the model does not forget "
        "these classes.",
        auto="the model's training images if they are found, else none",
        requires="extend",
        reason="it applies only when a model is extended",
        metavar="FOLDER",
        is_path=True,
    )
    train_old_classes: bool = option(
        False,
        "extending",
        "Train the weights of the existing classes as well as those of the new ones.",
        requires="extend",
        reason="it applies only when a model is extended",
    )
    target_accuracy: float = option(
        0.95,
        "evaluation",
        'Accuracy that the model\'s answers should reach. On images where it is less certain, it answers "unsure".',
        limits=Range(0, 1, excludes_low=True, excludes_high=True),
        metavar="FRACTION",
    )

    def __post_init__(self) -> None:
        for name, annotation in option_types().items():
            object.__setattr__(self, name, as_type(name, getattr(self, name), annotation))
        check_options(vars(self))
        if self.effort == "auto":
            changed = [name for name, default in defaults().items() if vars(self)[name] != default]
            given = None if self.extend else next(fine_tuning_options(vars(self), changed, options_of()), None)
            object.__setattr__(self, "_implied_by", given)
            object.__setattr__(self, "_is_effort_open", True)
            object.__setattr__(self, "effort", "quick" if given else "probe")

    @classmethod
    def of(cls, recipe: Recipe | None, options: Mapping[str, Any]) -> Recipe:
        """A recipe that is given whole, or one made of single options.

        Raises:
            OptionError: both are given, an option does not exist, or a value has the wrong type.
        """
        if recipe is not None and not isinstance(recipe, Recipe):
            raise OptionError(f"recipe: expected a headstart.Recipe, got {type(recipe).__name__}.")
        if recipe is not None and options:
            raise OptionError(f"give a recipe or single options ({', '.join(options)}), not both.")
        for former in RENAMED.keys() & options.keys():
            raise OptionError(f"{former}: this option is called {RENAMED[former]}.")
        try:
            return recipe or cls(**options)
        except TypeError as error:
            raise OptionError(f"{str(error).split(') ')[-1]}. A recipe has: {', '.join(options_of())}.") from error

    @property
    def paths(self) -> dict[str, str]:
        """The options that name a file or folder of this machine."""
        given = {name: getattr(self, name) for name, declared in options_of().items() if declared.is_path}
        return {name: path for name, path in given.items() if path and path != PRETRAINED and not is_address(path)}

    def without_paths(self) -> Recipe:
        """The recipe for publication: files and folders by their names alone."""
        names: dict[str, Any] = {name: last_part(path) for name, path in self.paths.items()}
        return replace(self, **names)

    def as_json(self) -> dict[str, Any]:
        """A JSON document that ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Recipe:
        """Reads what ``as_json`` wrote, also with former names; options of newer versions are ignored."""
        current = with_current_names(document, RENAMED)
        former = {name for name, value in FORMER_AUTO.items() if name in current and current[name] == value}
        options = {name: value for name, value in current.items() if name in options_of()} | dict.fromkeys(former)
        if options.get("effort") == "probe" and options.get("head", LINEAR) == LINEAR:
            options |= {name: defaults()[name] for name in WITHOUT_EFFECT}
        return cls(**options)


@cache
def options_of() -> dict[str, Option]:
    """Name -> declaration of every option, in the order of the fields."""
    return {declared.name: declaration_of(declared) for declared in fields(Recipe)}


@cache
def option_types() -> dict[str, Any]:
    """Name -> type of every option, for example ``int | None``."""
    return get_type_hints(Recipe)


@cache
def defaults() -> dict[str, Any]:
    """Name -> default of every option."""
    return {declared.name: declared.default for declared in fields(Recipe)}


def check_options(values: Mapping[str, Any], shown: Name = python_name) -> None:
    """Checks the options of a recipe one by one and together.

    Args:
        values: every option, each of its declared type.
        shown: how options are called in messages, see ``option.Name``.

    Raises:
        OptionError: a value is out of range, or two options contradict each other.
    """
    for name, declared in options_of().items():
        check_limits(name, values[name], option_types()[name], declared.limits, shown)
    given = [name for name in options_of() if values[name] != defaults()[name]]
    check_combinations(values, given, options_of(), shown)
