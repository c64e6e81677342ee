from __future__ import annotations

import json
import runpy
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.errors import OptionError
from headstart.training.former_options import FORMER_AUTO, RENAMED
from headstart.training.option import flag_name
from headstart.training.recipe import Recipe, check_options, defaults, option_types, options_of
from headstart.training.recipe_options import RecipeOptions

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"epochs": "3"}, "epochs: expected a whole number or None, got '3'"),
        ({"epochs": 3.5}, "epochs: expected a whole number"),
        ({"seed": None}, "seed: expected a whole number, got None"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"lr": "0.1"}, "lr: expected a number"),
        ({"lr": float("nan")}, "lr nan: expected more than 0 and at most 1"),
        ({"val": "0.2"}, "val: expected a number"),
        ({"label_smoothing": "a"}, "label_smoothing: expected a number or None"),
        ({"flip": "no"}, "flip: expected True or False"),
        ({"flip": 0}, "flip: expected True or False"),
        ({"effort": 1}, "effort: expected text"),
        ({"weights": b"w.pth"}, "weights: expected text"),
        ({"head": ["32", "16"]}, "head: expected text"),
        ({"target_accuracy": [0.9]}, "target_accuracy: expected a number"),
    ],
)
def test_a_choice_of_the_wrong_type_is_named_with_what_is_expected(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Recipe(**choice)


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
@pytest.mark.parametrize("value", [object(), [], {}, b"x", (1,), 1j, ...])
def test_no_value_of_any_field_raises_anything_but_an_option_error(field: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"^{field}: expected"):
        Recipe(**{field: value})


def test_numpy_numbers_and_paths_become_plain_values_that_json_can_hold() -> None:
    recipe = Recipe(seed=np.int64(3), val=np.float32(0.25), test=0, flip=np.bool_(False), weights=Path("a/b.pth"))  # type: ignore[arg-type]
    assert (recipe.seed, recipe.val, recipe.flip, recipe.weights) == (3, 0.25, False, "a/b.pth")
    assert Recipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe


@pytest.mark.parametrize(
    "choice",
    [
        {"lr": 0.01},
        {"epochs": 3},
        {"unfreeze": "blocks.6"},
        {"views": 2},
        {"gradual_unfreezing": True},
        {"scratch": True},
        {"tune": "lora"},
    ],
)
def test_an_option_of_fine_tuning_implies_it_and_contradicts_a_probe(choice: dict[str, Any]) -> None:
    name = next(iter(choice))
    recipe = Recipe(**choice)
    assert (recipe.effort, recipe.implied_by) == ("quick", name)
    assert Recipe.from_json(recipe.as_json()) == recipe
    named = Recipe(**choice, effort="standard")
    assert (named.effort, named.implied_by) == ("standard", "")
    with pytest.raises(OptionError, match=f"{name}: effort probe trains no backbone weights"):
        Recipe(**choice, effort="probe")
    with pytest.raises(OptionError, match=f"{name}: extending a model trains no backbone weights"):
        Recipe(**choice, extend="pretrained")


def test_without_such_an_option_a_probe_is_fitted() -> None:
    assert (Recipe().effort, Recipe().implied_by) == ("probe", "")
    assert Recipe(head="32", views=3).effort == "probe"  # views for the head


def test_a_recipe_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match=r"expected a headstart\.Recipe, got dict"):
        Recipe.of({"seed": 1}, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", options_of())
def test_every_option_has_help_a_default_and_a_group(name: str) -> None:
    declared = options_of()[name]
    assert len(declared.help) > 20
    assert declared.help.endswith(".")
    assert (defaults()[name] is None) == bool(declared.auto), "None stands for what is chosen automatically"
    assert set(declared.excludes) | {declared.requires or name} <= set(options_of())
    assert not (declared.requires or declared.excludes) or declared.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "image_size 0: expected at least 16 pixels"),
        ({"fit": "stretch"}, "fit 'stretch': expected one of auto, crop, pad, squash"),
        ({"epochs": 0}, "epochs 0: expected 1 to 10,000"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0: expected 0 or more and less than 1"),
        ({"target_accuracy": 1}, "target_accuracy 1.0: expected more than 0 and less than 1"),
        ({"backbone": ""}, "backbone: the text is empty; leave the option out for its default"),
        ({"effort": "huge"}, "effort 'huge': expected one of auto, probe, quick"),
        ({"head_lr": 0.1}, "head_lr: requires head; a linear head is fitted without a learning rate"),
        ({"head": "8", "probe": "svm"}, "probe: cannot be combined with head"),
        ({"scratch": True, "weights": "w.pth"}, "weights: cannot be combined with scratch"),
        ({"scratch": True, "unfreeze": "blocks.6"}, "scratch: trains all layers; leave out unfreeze"),
        ({"lora_rank": 4}, "lora_rank: requires tune lora; only LoRA has a rank"),
        ({"lora_rank": 4, "tune": "bias-norm"}, "lora_rank: requires tune lora; only LoRA has a rank"),
        ({"lora_rank": 0, "tune": "lora"}, "lora_rank 0: expected 1 to 1,024"),
        ({"tune": "lora", "scratch": True}, "tune 'lora': random weights have to be trained themselves"),
        ({"tune": "head"}, "tune 'head': expected one of auto, full, bias-norm, lora"),
        ({"rehearsal": "images"}, "rehearsal: requires extend"),
        ({"extend": "run", "pool": "max"}, "pool: cannot be combined with extend"),
        ({"extend": "run", "backbone": "resnet18"}, "backbone: cannot be combined with extend"),
    ],
)
def test_values_out_of_range_and_contradictions_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Recipe(**options)


def test_messages_name_options_as_they_are_called_where_the_error_is_shown() -> None:
    values = vars(Recipe()) | {"head_epochs": 3}
    with pytest.raises(OptionError, match=r"^--head-epochs: requires --head; "):
        check_options(values, flag_name)


def test_a_former_name_is_answered_with_the_name_of_today() -> None:
    with pytest.raises(OptionError, match="balance: this option is called balance_classes"):
        Recipe.of(None, {"balance": True})


FORMER = {
    "effort": "quick", "backbone": "", "weights": "", "image_size": 0, "pool": "auto", "cut": "", "probe": "logistic",
    "head": "linear", "head_epochs": 0, "head_lr": 0.0, "single_logit": False, "unfreeze": "", "epochs": 0, "lr": 0.0,
    "views": 0, "fresh_views": False, "range": "data", "flip": True, "smoothing": 0.0, "cutmix": None, "mixup": 0.0,
    "jitter": 0.05, "balance": True, "live_norms": True, "scratch": False, "gradual": True, "extend": "",
    "remember": "", "train_old": False, "wanted": 0.9, "val": None, "test": 0.0, "seed": 3,
}  # fmt: skip
"""A recipe.json of version 0.1."""


def test_a_recipe_with_the_former_names_means_the_same() -> None:
    assert Recipe.from_json(FORMER) == Recipe(
        effort="quick", value_range="data", label_smoothing=0.0, feature_jitter=0.05, balance_classes=True,
        update_batchnorm=True, gradual_unfreezing=True, target_accuracy=0.9, test=0.0, seed=3,
    )  # fmt: skip
    assert set(RENAMED) | set(FORMER_AUTO) - {"rehearsal"} <= set(FORMER)
    extended = {**FORMER, "effort": "probe", "live_norms": False, "gradual": False, "balance": False, "range": "full"}
    extended |= {"extend": "run", "remember": "images", "train_old": True}
    found = Recipe.from_json(extended)
    assert (found.extend, found.rehearsal, found.train_old_classes) == ("run", "images", True)
    assert Recipe.from_json(found.as_json()) == found


@pytest.mark.parametrize(
    "given", [{"label_smoothing": 0.2}, {"cutmix": 0.5}, {"mixup": 0.2}, {"feature_jitter": 0.0}, {"views": 3}]
)
def test_an_option_that_only_fine_tuning_uses_is_never_without_effect(given: dict[str, Any]) -> None:
    assert Recipe(**given).effort == "quick"
    with pytest.raises(OptionError, match=f"{next(iter(given))}: effort probe trains no backbone weights"):
        Recipe(effort="probe", **given)
    old = Recipe().as_json() | given | {"effort": "probe"}
    if "views" not in given:  # files of earlier versions may hold it
        assert Recipe.from_json(old) == Recipe(effort="probe")


def test_heads_trained_by_gradient_descent_use_label_smoothing_and_views_without_fine_tuning() -> None:
    assert Recipe(head="64", label_smoothing=0.2).effort == Recipe(head="64", views=3).effort == "probe"
    assert Recipe(head="64", cutmix=0.5).effort == "quick"


def test_the_files_derived_from_the_declaration_are_up_to_date() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "generate_options.py"))
    for file, text in (("TYPED_DICT", "typed_dict"), ("PAGE", "page")):
        assert written[file].read_text(encoding="utf-8") == written[text](), "run python scripts/generate_options.py"
    assert set(typing.get_type_hints(RecipeOptions)) == set(options_of())
    assert typing.get_type_hints(RecipeOptions) == option_types()
