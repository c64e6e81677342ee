"""Rules that options of a recipe have to keep together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headstart.errors import OptionError
from headstart.training.head_spec import LINEAR, parse_heads
from headstart.training.option import Name, Option, check_rules

LAST_LAYER = "last"
"""In place of names of layers: the last one alone."""

LOGISTIC = "logistic"
"""The default classifier on frozen features."""

PRETRAINED = "pretrained"
"""In place of a model to extend: the classifier that the backbone's weights came with."""


def check_combinations(
    values: Mapping[str, Any], given: Sequence[str], options: Mapping[str, Option], shown: Name
) -> None:
    """Checks options together.

    Args:
        values: every option.
        given: names of those that differ from their default.
        options: name -> declaration.
        shown: how options are called in messages, see ``option.Name``.

    Raises:
        OptionError: two options contradict each other.
    """
    _check_head(values, shown)
    _check_effort(values, given, options, shown)
    check_rules(options, given, shown)
    _check_extending(values, given, shown)
    _check_tuning(values, given, shown)
    if values["scratch"] and values["unfreeze"] not in (None, "all"):
        raise OptionError(f"{shown('scratch')}: trains all layers; leave out {shown('unfreeze')}.")


def fine_tuning_options(
    values: Mapping[str, Any], given: Sequence[str], options: Mapping[str, Option]
) -> Iterator[str]:
    """The options given that concern fine-tuning alone; some are also used by heads trained by gradient descent."""
    for name in given:
        declared = options[name]
        if declared.needs_fine_tuning and not (declared.also_trains_heads and values["head"] != LINEAR):
            yield name


def convolves(head: str) -> bool:
    """True if a head takes the map of the last layer."""
    return bool(parse_heads(head)[0].channels)


def _check_head(values: Mapping[str, Any], shown: Name) -> None:
    """A convolution head takes a map and pools it itself."""
    if not convolves(values["head"]):
        return
    if values["pool"] != "auto":
        raise OptionError(
            f"{shown('pool')} {values['pool']!r}: a convolution head includes its pooling, as in conv1280-avg; leave "
            f"{shown('pool')} out."
        )
    if values["layers"] not in (None, LAST_LAYER):
        raise OptionError(
            f"{shown('layers')} {values['layers']!r}: a convolution head needs the map of the last layer; leave "
            f"{shown('layers')} out."
        )


def _check_effort(values: Mapping[str, Any], given: Sequence[str], options: Mapping[str, Option], shown: Name) -> None:
    """Fine-tuning options go with fine-tuning, and fine-tuning with a linear probe."""
    effort, tuning = values["effort"], next(fine_tuning_options(values, given, options), None)
    if tuning and (effort == "probe" or (effort == "auto" and values["extend"])):
        why = "extending a model" if values["extend"] else f"{shown('effort')} probe"
        raise OptionError(f"{shown(tuning)}: {why} trains no backbone weights; leave one of the two out.")
    if values["extend"] and effort not in ("auto", "probe"):
        raise OptionError(
            f"{shown('effort')} {effort!r}: extending keeps the backbone as it is; leave one of the two out."
        )
    is_fine_tuning = effort not in ("auto", "probe") or tuning is not None
    if is_fine_tuning and values["probe"] in ("rbf", "knn"):
        raise OptionError(
            f"{shown('probe')} {values['probe']!r}: fine-tuning continues from a linear classifier; choose logistic, "
            f"svm or centroid, or {shown('effort')} probe."
        )


def _check_extending(values: Mapping[str, Any], given: Sequence[str], shown: Name) -> None:
    """A model that is extended determines its backbone and its preprocessing."""
    if values["extend"] in (None, PRETRAINED):
        return
    for name in ("backbone", "weights", "image_size", "fit", "value_range"):
        if name in given:
            raise OptionError(
                f"{shown(name)}: cannot be combined with {shown('extend')}; extending keeps the backbone and the "
                "preprocessing of the model. Leave one of the two out."
            )


def _check_tuning(values: Mapping[str, Any], given: Sequence[str], shown: Name) -> None:
    """A rank goes with LoRA, and random weights have to be trained themselves."""
    if "lora_rank" in given and values["tune"] != "lora":
        raise OptionError(f"{shown('lora_rank')}: requires {shown('tune')} lora; only LoRA has a rank.")
    if values["scratch"] and values["tune"] not in ("auto", "full"):
        raise OptionError(
            f"{shown('tune')} {values['tune']!r}: random weights have to be trained themselves; leave out "
            f"{shown('tune')} or {shown('scratch')}."
        )
