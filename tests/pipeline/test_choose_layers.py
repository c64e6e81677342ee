"""Features of earlier layers: added where cross-validation says that they help, and carried through fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_images import write_classes
from recorded_progress import RecordedProgress

import headstart as hs
from headstart.errors import OptionError
from headstart.pipeline import choose_layers as module
from headstart.runs.events import Event
from headstart.training.fit_head import Fitted

pytestmark = [pytest.mark.usefixtures("small_networks"), pytest.mark.slow]

QUICK = {"image_size": 64, "device": "cpu"}


def said(data: Path, out: Path, **options: object) -> tuple[hs.Run, list[str]]:
    progress = RecordedProgress()
    run = hs.train(data, out=out, progress=progress, **QUICK, **options)  # type: ignore[arg-type]
    return run, [line for line in progress.said if line.startswith("Layers:")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("d") / "colours", {"blue": 40, "green": 40, "red": 40})


@pytest.mark.parametrize(("bar", "layers"), [(1.1, ["blocks.5", "blocks.0"]), (-0.1, [])])
def test_the_test_decides_and_the_model_file_holds_the_decision(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: float, layers: list[str]
) -> None:
    monkeypatch.setattr(module, "BY_CHANCE", bar)
    run, lines = said(data, tmp_path / "run")
    assert len(lines) == 1
    assert ("are added" in lines[0]) == bool(layers)
    model = hs.load(run.folder)
    assert list(model.net.spec.layers) == layers
    image = data / "red" / sorted(p.name for p in (data / "red").iterdir())[0]
    assert model.predict(image).label == "red"


def test_layers_that_are_named_are_used_without_a_choice(data: Path, tmp_path: Path) -> None:
    run, lines = said(data, tmp_path / "run", layers="blocks.3", effort="quick", epochs=1)
    assert lines == []
    assert hs.load(run.folder).net.spec.layers == ("blocks.3",)


def test_rungs_train_the_features_of_the_last_layer_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BY_CHANCE", 1.1)
    run, _ = said(data, tmp_path / "run", unfreeze="blocks.6", epochs=2, cutmix=0.5)
    assert run.rungs[-1].name == "fine-tune from blocks.6"
    model = hs.load(run.folder)
    assert model.net.spec.layers == ()  # earlier layers, which stay frozen, would be in the way
    rows = [line.split(",") for line in (run.folder / "predictions.csv").read_text().splitlines()]
    assert len(rows) > 10


def test_a_trained_head_on_networks_side_by_side_is_fitted_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, fit = list[bool](), module.fit_head

    def counted(*arguments: Any, by_network: bool = False) -> Fitted:
        fits.append(by_network)
        return fit(*arguments, by_network=by_network)

    monkeypatch.setattr(module, "fit_head", counted)
    pair = {"backbone": "tf_efficientnet_lite1.in1k+tf_efficientnet_lite0.in1k", "unfreeze": "first.blocks.6"}
    said(data, tmp_path / "mlp", **pair, layers="last", head="16", head_epochs=2, epochs=1)
    assert fits == [False]
    said(data, tmp_path / "linear", **pair, layers="last", epochs=1)
    assert fits[1:] == [True, False]


def test_few_images_keep_the_last_layer_alone(tmp_path: Path) -> None:
    few = write_classes(tmp_path / "few", {"blue": 10, "red": 10})
    run, lines = said(few, tmp_path / "run")
    assert lines == []
    assert hs.load(run.folder).net.spec.layers == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "blocks.99"}, r"no such layer"),
        ({"layers": "blocks.4", "cut": "blocks.5"}, "layers"),
        ({"layers": "blocks.4", "head": "conv8-avg"}, "convolution head"),
    ],
)
def test_layers_that_are_impossible_are_refused(
    data: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        hs.train(data, out=tmp_path / "run", **QUICK, **options)  # type: ignore[arg-type]


def test_a_stopped_run_with_layers_resumes_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 4."""
    monkeypatch.setattr(module, "BY_CHANCE", 1.1)
    options = {"unfreeze": "blocks.6", "epochs": 2, **QUICK}
    whole = hs.train(data, out=tmp_path / "whole", **options)  # type: ignore[arg-type]

    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if event.kind == "epoch" and event["stage"].startswith("fine-tune"):
            raise Stop

    with pytest.raises(Stop):
        hs.train(data, out=tmp_path / "stopped", listener=stop, **options)  # type: ignore[arg-type]
    resumed = hs.resume(tmp_path / "stopped")
    one, other = hs.load(whole.folder), hs.load(resumed.folder)
    for name, tensor in one.net.state().items():
        assert np.array_equal(tensor.numpy(), other.net.state()[name].numpy()), name
