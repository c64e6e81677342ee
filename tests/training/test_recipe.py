from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.errors import OptionError
from headstart.training.recipe import Recipe


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"epochs": "3"}, "epochs: expected a whole number, got '3'"),
        ({"epochs": 3.5}, "epochs: expected a whole number"),
        ({"seed": None}, "seed: expected a whole number, got None"),
        ({"seed": True}, "seed: expected a whole number"),
        ({"lr": "0.1"}, "lr: expected a number"),
        ({"lr": float("nan")}, "lr nan"),
        ({"val": "0.2"}, "val: expected a number"),
        ({"smoothing": "a"}, "smoothing: expected a number or None"),
        ({"flip": "no"}, "flip: expected True or False"),
        ({"flip": 0}, "flip: expected True or False"),
        ({"effort": 1}, "effort: expected text"),
        ({"weights": b"w.pth"}, "weights: expected text"),
        ({"head": ["32", "16"]}, "head: expected text"),
        ({"wanted": [0.9]}, "wanted: expected a number"),
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
    [{"lr": 0.01}, {"epochs": 3}, {"unfreeze": "blocks.6"}, {"views": 2}, {"gradual": True}, {"scratch": True}],
)
def test_an_option_of_fine_tuning_implies_it_and_contradicts_a_probe(choice: dict[str, Any]) -> None:
    name = next(iter(choice))
    recipe = Recipe(**choice)
    assert (recipe.effort, recipe.implied_by) == ("quick", name)
    assert Recipe.from_json(recipe.as_json()) == recipe
    named = Recipe(**choice, effort="standard")
    assert (named.effort, named.implied_by) == ("standard", "")
    with pytest.raises(OptionError, match=f"{name}: effort 'probe' trains no weight"):
        Recipe(**choice, effort="probe")
    with pytest.raises(OptionError, match=f"{name}: extending a model trains no weight"):
        Recipe(**choice, extend="pretrained")


def test_without_such_an_option_a_probe_is_fitted() -> None:
    assert (Recipe().effort, Recipe().implied_by) == ("probe", "")
    assert Recipe(head="32", views=3).effort == "probe"  # views for the head


def test_a_recipe_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match=r"expected a headstart\.Recipe, got dict"):
        Recipe.of({"seed": 1}, {})  # type: ignore[arg-type]
