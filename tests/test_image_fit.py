"""The option fit is followed by everything that looks at an image, from training to exported files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_images import COLOURS, random_image
from safetensors.torch import save_file
from served import served

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.data.augment import views
from headstart.data.decode import decode
from headstart.data.preprocessing import Fit
from headstart.errors import OptionError, RunError
from headstart.exports.graph import ExportGraph
from headstart.features.export import export_features
from headstart.files import read_rows
from headstart.pipeline.resume import resume
from headstart.reports.shown_images import heat_map_overlays
from headstart.runs.events import Event
from headstart.training.recipe import Recipe

pytestmark = pytest.mark.slow

FITS: tuple[Fit, ...] = ("crop", "pad", "squash")
SIDE = 32
Trained = Callable[[Fit], hs.Run]


def write_panoramas(
    folder: Path, names: tuple[str, ...] = ("blue", "red"), count: int = 24, first_seed: int = 0
) -> Path:
    """Images of 120 x 30 pixels, whose colour is only in the outer quarters: a centre crop shows none of it."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            seed = first_seed + 100 * number + i
            image = random_image(seed, size=(120, 30))
            for left in (0, 90):
                image.paste(random_image(seed, COLOURS[name], size=(30, 30)), (left, 0))
            image.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def panoramas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_panoramas(tmp_path_factory.mktemp("data") / "panoramas")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A backbone that takes a moment."""
    file = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(random_backbone("test_resnet", image_size=SIDE, seed=3).module.state_dict(), file)
    return {"backbone": "test_resnet", "weights": str(file), "image_size": SIDE, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(panoramas: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with a fit, trained once."""
    runs: dict[Fit, hs.Run] = {}
    folder = tmp_path_factory.mktemp("runs")

    def run(fit: Fit) -> hs.Run:
        if fit not in runs:
            runs[fit] = hs.train(panoramas, out=folder / fit, fit=fit, val=0.3, test=0.2, seed=1, **tiny)
        return runs[fit]

    return run


def evaluated_images(run: hs.Run) -> list[str]:
    return [row["path"] for row in read_rows(run.folder / "predictions.csv")]


def test_pad_and_squash_see_what_the_centre_crop_cuts_off(trained: Trained) -> None:
    accuracy = {fit: hs.load_run(trained(fit).folder).scores.accuracy for fit in FITS}
    assert accuracy["pad"] > 0.95
    assert accuracy["squash"] > 0.95
    assert accuracy["crop"] < 0.8


@pytest.mark.parametrize("fit", FITS)
def test_prediction_graph_features_and_server_agree_with_training(
    fit: Fit, trained: Trained, tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = trained(fit)
    model = hs.load(run.folder)
    assert model.recipe.fit == fit
    assert model.preprocessing == random_backbone("test_resnet", image_size=SIDE, fit=fit).preprocessing
    rows = read_rows(run.folder / "predictions.csv")
    expected = np.array([[float(row[f"p:{name}"]) for name in model.classes] for row in rows])
    paths = [row["path"] for row in rows]
    found, _, _ = model.predict_with_outliers(paths, device="cpu")
    assert np.abs(found - expected).max() < 1e-4
    graph = ExportGraph(model)
    for path, probabilities in zip(paths, expected, strict=True):
        pixels = torch.from_numpy(np.array(decode(path).image))[None]
        assert np.abs(graph(pixels)[0][0].numpy() - probabilities).max() < 1e-4
    with served(model) as server:
        (answer,) = server.predict(("a.png", Path(paths[0]).read_bytes())).json()["predictions"]
        by_server = {own["label"]: own["probability"] for own in answer["probabilities"]}
        assert [by_server[name] for name in model.classes] == pytest.approx(expected[0], abs=1e-4)
        assert server.client.get("/v1/model").json()["fit"] == model.preprocessing.sentence
    extractor = hs.FeatureExtractor(image_fit=fit, **tiny)
    features = extractor.fit_transform(paths)
    assert np.abs(model.probabilities(features) - expected).max() < 1e-4
    export_features(Path(paths[0]).parents[1], tmp_path / "f.npz", fit=fit, **tiny)
    with np.load(tmp_path / "f.npz") as file:
        place = [str(Path(paths[0]).parent / Path(path).name) for path in file["paths"].tolist()].index(paths[0])
        assert np.allclose(file["features"][place], features[0], atol=1e-4)


@pytest.mark.parametrize("fit", FITS)
def test_heat_maps_show_what_the_network_saw(fit: Fit, trained: Trained) -> None:
    run = trained(fit)
    model = hs.load(run.folder)
    path = evaluated_images(run)[0]
    seen = model.preprocess(path)
    assert not isinstance(seen, str)
    (drawn,) = heat_map_overlays(model, [path], [0])
    assert drawn is not None
    grey = seen.mean(axis=2)
    unexplained = np.abs(drawn - grey[..., None]).max(axis=2) < 2  # where the overlay is transparent
    assert unexplained.mean() > 0.05
    bars = (seen == model.preprocessing.fill).all(axis=2)
    assert bars[: SIDE // 4].all() == (fit == "pad")


@pytest.mark.parametrize("fit", FITS)
def test_report_card_and_notebook_say_how_images_are_fitted_in(fit: Fit, trained: Trained) -> None:
    run = trained(fit)
    sentence = {
        "crop": "Images are resized to cover ",
        "pad": "Whole images are resized to fit into 32 x 32 pixels and padded with the mean colour.",
        "squash": "Whole images are resized to 32 x 32 pixels without keeping their aspect ratio.",
    }[fit]
    assert sentence in run.report_path.read_text()
    assert sentence in (run.folder / "README.md").read_text()
    assert sentence in hs.load(run.folder)._repr_html_()
    findings = {
        finding["kind"]: finding["message"] for finding in json.loads((run.folder / "findings.json").read_text())
    }
    told = findings["extreme-aspect-ratio"]
    assert ("fit pad (--fit pad) shows all of it" in told) == (fit == "crop")
    assert ("is padding" in told) == (fit == "pad")
    assert ("distorted" in told) == (fit == "squash")


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_fine_tuning_trains_on_views_of_the_whole_image(
    fit: Fit, panoramas: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views of a centre crop's shape would often show none of the colours, and no bars."""
    made: list[np.ndarray] = []

    def noting(*arguments: Any, **settings: Any) -> np.ndarray:
        made.append(views(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr("headstart.features.activations.views", noting)
    choices = {"unfreeze": "layer4", "epochs": 2, "views": 2, "val": 0.3, "test": 0.2, "seed": 1}
    run = hs.train(panoramas, out=tmp_path / "run", fit=fit, cache=tmp_path / "cache", **choices, **tiny)
    seen = np.concatenate(made)
    fill = random_backbone("test_resnet", image_size=SIDE, fit=fit).preprocessing.fill
    bars = (seen == fill).all(axis=3)
    assert bars[:, : SIDE // 4].all() == (fit == "pad")
    assert not bars[:, SIDE // 2].any()
    assert run.scores.accuracy > 0.9
    assert hs.load(run.folder).recipe.fit == fit


def test_a_custom_loop_works_on_the_whole_image(panoramas: Path, tiny: dict[str, Any]) -> None:
    bench = hs.prepare(panoramas, fit="pad", views=1, **tiny)
    assert bench.preprocessing == random_backbone("test_resnet", image_size=SIDE, fit="pad").preprocessing
    assert bench.model().preprocessing == bench.preprocessing


def test_retraining_and_extending_keep_the_fit(trained: Trained, tmp_path: Path) -> None:
    run = trained("pad")
    corrected = write_panoramas(tmp_path / "corrected", count=2, first_seed=5_000)
    again = hs.retrain(run.folder, corrected, out=tmp_path / "again", device="cpu")
    assert again.run.recipe.fit == "pad"
    assert hs.load(again.run.folder).preprocessing == hs.load(run.folder).preprocessing
    new = write_panoramas(tmp_path / "new", ("green",), first_seed=6_000)
    grown = hs.train(new, out=tmp_path / "grown", extend=str(run.folder), device="cpu")
    model = hs.load(grown.folder)
    assert model.preprocessing == hs.load(run.folder).preprocessing
    found = model.predict([str(path) for path in sorted((new / "green").glob("*.png"))])
    assert sum(prediction.label == "green" for prediction in found) >= 20
    with pytest.raises(OptionError, match="fit: cannot be combined with extend"):
        hs.train(new, extend=str(run.folder), fit="squash")


def test_a_comparison_uses_one_fit_for_all_methods(panoramas: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    found = hs.compare(panoramas, out=tmp_path / "compared", only=["probes"], fit="squash", val=0.3, seed=1, **tiny)
    assert {hs.load_run(found.folder / row.run).recipe.fit for row in found.rows} == {"squash"}
    assert max(row.accuracy for row in found.rows) > 0.95


def test_candidates_are_compared_with_the_fit_of_the_recipe(tiny: dict[str, Any], tmp_path: Path) -> None:
    data = write_panoramas(tmp_path / "data", count=80)  # enough to cross-validate
    named = {"only": "backbones", "candidates": [f"test_resnet={tiny['weights']}"], "image_size": SIDE, "device": "cpu"}
    accuracy = {}
    for fit in ("crop", "squash"):
        (row,) = hs.compare(data, out=tmp_path / fit, fit=fit, **named).rows
        accuracy[fit] = row.accuracy
    assert accuracy["squash"] > 0.95
    assert accuracy["crop"] < 0.8


class Stopped(Exception):
    pass


def test_a_run_is_resumed_with_its_fit_and_with_no_other(panoramas: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.kind == "engine":
            raise Stopped

    choices = {"val": 0.3, "test": 0.2, "seed": 1, "fit": "pad"}
    whole = hs.train(panoramas, out=tmp_path / "whole", **choices, **tiny)
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        hs.train(panoramas, out=folder, listener=stop, **choices, **tiny)
    written = (folder / "recipe.json").read_text()
    (folder / "recipe.json").write_text(json.dumps(json.loads(written) | {"fit": "crop"}))
    with pytest.raises(
        RunError, match=r"the preprocessing has changed: Whole images .* when the run began, Images are"
    ):
        resume(folder)
    (folder / "recipe.json").write_text(written)
    assert resume(folder).model_path.read_bytes() == whole.model_path.read_bytes()


def test_a_model_file_decides_by_its_preprocessing_and_not_by_its_recipe(trained: Trained, tmp_path: Path) -> None:
    """Files of earlier versions have no fit in their recipe."""
    model = hs.load(trained("pad").folder)
    assert Recipe.from_json({k: v for k, v in model.recipe.as_json().items() if k != "fit"}) == Recipe.from_json(
        model.recipe.as_json() | {"fit": "auto"}
    )
    without = hs.load(model.replace(recipe=Recipe()).save(tmp_path / "m.safetensors"))
    assert without.preprocessing == model.preprocessing
