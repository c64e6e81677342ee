"""Runs that add classes to a model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from random_images import write_classes

import headstart as hs
from headstart.errors import DataError, OptionError

SMALL = {"image_size": 64, "device": "cpu"}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "two", {"blue": 16, "green": 16})
    write_classes(root / "more", {"red": 16, "green": 4}, first_seed=900)
    write_classes(root / "one", {"grey": 12}, first_seed=1800)
    write_classes(root / "others", {"any": 12}, first_seed=2700)
    return root


@pytest.fixture(scope="module")
def grown(folders: Path) -> hs.Run:
    first = hs.train(folders / "two", out=folders / "first", **SMALL)
    return hs.train(folders / "more", out=folders / "second", extend=str(first.folder), device="cpu")


def test_a_models_classes_stay_and_the_new_ones_stand_behind(grown: hs.Run, folders: Path) -> None:
    """Images of a class that is known already are rehearsal with the rest."""
    before, after = hs.load(folders / "first"), hs.load(grown.model_path)
    assert after.classes == ("blue", "green", "red")
    assert torch.equal(after.head[0].weight[:2], before.head[0].weight)
    assert {"old classes", "val"} <= set(grown.results)
    assert grown.results["old classes"].accuracy > 0.8
    reds = after.predict(sorted((folders / "more" / "red").glob("*.png")))
    assert sum(p.label == "red" for p in reds) >= 14
    document = json.loads((grown.folder / "run.json").read_text())
    assert document["head"]["name"] == "extension"
    assert document["head"]["old_classes"] == 2
    again = {part.scores.name: part.scores for part in hs.evaluate(grown.folder)}
    assert again["val"].correct == grown.results["val"].correct


@pytest.mark.exhaustive
def test_a_second_extension_works_like_the_first(grown: hs.Run, folders: Path) -> None:
    """All that the first models learnt from is rehearsal still."""
    third = hs.train(folders / "one", out=folders / "third", extend=str(grown.folder), device="cpu")
    assert hs.load(third.model_path).classes == ("blue", "green", "red", "grey")
    with open(third.folder / "rehearsal.csv", newline="") as file:
        rehearsal = list(csv.DictReader(file))
    assert {row["label"] for row in rehearsal} == {"blue", "green", "red"}
    assert {row["split"] for row in rehearsal} == {"train", "val"}
    assert "val, new classes only" not in third.results  # one class alone


@pytest.mark.exhaustive
def test_imagenets_classes_are_extended_with_synthesised_features(folders: Path) -> None:
    is_synthesised = hs.train(folders / "two", out=folders / "is_synthesised", extend="pretrained", **SMALL)
    assert is_synthesised.results["val, new classes only"].accuracy > 0.8
    assert "old classes" not in is_synthesised.results
    assert json.loads((is_synthesised.folder / "run.json").read_text())["head"]["is_synthesised"] is True


@pytest.mark.exhaustive
def test_imagenets_classes_are_extended_from_images_to_remember(folders: Path) -> None:
    named = {"extend": "pretrained", "rehearsal": str(folders / "others")}
    real = hs.train(folders / "two", out=folders / "real", **named, **SMALL)
    model = hs.load(real.model_path)
    assert len(model.classes) == 1002
    assert model.classes[-2:] == ("blue", "green")
    assert real.results["val, new classes only"].accuracy > 0.8
    assert real.results["old classes"].count > 0
    assert json.loads((real.folder / "run.json").read_text())["head"]["is_synthesised"] is False
    assert "1002 classes" in real.report_path.read_text()
    header = (real.folder / "predictions.csv").read_text().splitlines()[0]
    assert header.count("p:") < 50  # classes that do not occur are left out


def test_what_cannot_be_extended_is_refused(folders: Path, grown: hs.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="already has every class of the data"):
        hs.train(folders / "two", out=tmp_path / "a", extend=str(grown.folder), device="cpu")
    with pytest.raises(OptionError, match="no images of its existing classes were found"):
        hs.train(folders / "one", out=tmp_path / "b", extend=str(grown.model_path), device="cpu")
    near = hs.train(folders / "two", out=tmp_path / "near", probe="knn", **SMALL)
    with pytest.raises(OptionError, match="no weights per class"):
        hs.train(folders / "one", out=tmp_path / "c", extend=str(near.folder), device="cpu")
    for choices in ({"effort": "quick"}, {"head": "16"}, {"backbone": "resnet18"}):
        with pytest.raises(OptionError, match="extending keeps"):
            hs.train(folders / "one", extend=str(grown.folder), **choices)
    with pytest.raises(OptionError, match="rehearsal: requires extend"):
        hs.train(folders / "one", rehearsal="x")
    with pytest.raises(DataError, match="a classifier needs at least two"):
        hs.train(folders / "one", out=tmp_path / "d")
