"""Training and production agree: predict, export, server and page give the same probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from browser import browsing, chromium
from PIL import ExifTags, Image
from random_images import write_12_bits, write_classes
from safetensors.torch import save_file
from served import served, until
from servers import serving

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.data.decode import decode
from headstart.data.preprocessing import resize_and_crop
from headstart.errors import DataError, OptionError
from headstart.exports.graph import ExportGraph, export_metadata
from headstart.exports.metadata import ExportMetadata
from headstart.exports.snippets import python_snippet
from headstart.files import read_rows
from headstart.serve.app import build_app
from headstart.serve.batching import InferenceService
from headstart.serve.corrections import Corrections

pytestmark = pytest.mark.usefixtures("small_networks")

WITHIN = 1e-4


def photograph(path: Path) -> bytes:
    """A JPEG that is decoded at reduced size and rotated by its EXIF tag."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1640, 1230), Image.Resampling.BICUBIC)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    image.save(path, "JPEG", quality=92, exif=tags)
    return path.read_bytes()


@pytest.mark.exhaustive
def test_predict_export_server_and_page_give_the_same_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.serve.batching.EXPECTED_IMAGES", 1)
    data = write_classes(tmp_path / "colours", {"blue": 30, "green": 30, "red": 30})
    run = hs.train(data, out=tmp_path / "run", image_size=64, device="cpu")
    taken = photograph(tmp_path / "image.jpg")
    model = hs.load(run.folder)
    expected = model.predict(tmp_path / "image.jpg", top=3)
    assert expected.label is not None
    assert 0.01 < expected.probability < 0.9999  # otherwise differences could stay unnoticed
    chances = dict(expected.top)

    exported = hs.export(run.folder, out=tmp_path / "model.onnx")
    script = exported.snippets["python"].replace("image.jpg", str(tmp_path / "image.jpg"))
    script += "\nprint(json.dumps(dict(zip(metadata['classes'], scores))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    by_export = json.loads(done.stdout.splitlines()[-1])
    answer, best = done.stdout.splitlines()[0].rsplit(" ", 1)
    assert answer == expected.answer
    assert float(best) == pytest.approx(expected.probability, abs=WITHIN)

    service = InferenceService(model, run=run.folder, device="cpu")
    app = build_app(service, corrections=Corrections(tmp_path / "kept"), log=None)
    with serving(app, service.state) as site:
        until(lambda: httpx.get(f"{site}/readyz").status_code == 200, seconds=60)
        (told,) = httpx.post(f"{site}/v1/predict", files={"files": ("image.jpg", taken)}).json()["predictions"]
        by_server = {own["label"]: own["probability"] for own in told["probabilities"]}
        for way in (by_export, by_server):
            assert way == pytest.approx(chances, abs=WITHIN)
        assert told["answer"] == expected.answer
        with chromium() as browser, browsing(browser, site) as (page, wrong):
            page.set_input_files("input[type=file] >> nth=0", str(tmp_path / "image.jpg"))
            page.get_by_role("button", name="Heat map").wait_for()
            shown = page.locator("main").inner_text().replace("\xa0", " ")
            assert not wrong
    for label, chance in chances.items():
        assert label in shown
        assert f"{100 * chance:.1f} %" in shown or not 0.001 < chance < 0.999


@pytest.mark.slow
def test_the_value_range_is_the_same_in_training_prediction_graph_and_server(tmp_path: Path) -> None:
    """Law 10: the value range of images with more than 8 bits is measured once and stored in the model."""
    weights = tmp_path / "resnet.safetensors"
    save_file(random_backbone("test_resnet", image_size=32, seed=3).module.state_dict(), weights)
    tiny = {"backbone": "test_resnet", "weights": str(weights), "image_size": 32, "device": "cpu"}
    data = write_12_bits(tmp_path / "data", {"dark": 20, "light": 20})
    run = hs.train(data, out=tmp_path / "run", value_range="data", cache=tmp_path / "cache", **tiny)
    assert "bit-depth" not in {finding.kind for finding in run.findings}
    model = hs.load(run.folder)
    low, high = model.preprocessing.value_range or (0, 0)
    assert 0 <= low < high < 0.0626
    assert model.recipe.value_range == "data"
    rows = read_rows(run.folder / "predictions.csv")
    told = {row["path"]: [float(row[f"p:{name}"]) for name in model.classes] for row in rows}
    chances, _, _ = model.predict_with_outliers(list(told), device="cpu")
    assert np.abs(chances - np.array(list(told.values()))).max() < WITHIN
    plain = replace(model.preprocessing, value_range=None)
    assert not np.array_equal(model.preprocess(rows[0]["path"]), resize_and_crop(decode(rows[0]["path"]).image, plain))
    metadata = ExportMetadata.read(export_metadata(model, written_with={}).text(), tmp_path)
    graph = ExportGraph(model)
    for path, chance in zip(told, chances, strict=True):
        seen = decode(path, min_side=metadata.decode_at_least, value_range=metadata.value_range).image
        assert np.abs(graph(torch.from_numpy(np.array(seen))[None])[0][0].numpy() - chance).max() < WITHIN
        assert np.array_equal(model.preprocess(Image.open(path)), model.preprocess(path))
    assert 'metadata["preprocessing"]["value_range"]' in python_snippet(tmp_path / "model.onnx", metadata)
    with served(model) as server:
        answer = server.predict(("a.png", Path(rows[0]["path"]).read_bytes())).json()["predictions"][0]
        by_server = {own["label"]: own["probability"] for own in answer["probabilities"]}
        assert [by_server[name] for name in model.classes] == pytest.approx(chances[0], abs=WITHIN)


def test_a_value_range_needs_images_of_more_than_8_bits(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "colours", {"blue": 12, "red": 12})
    with pytest.raises(DataError, match="no training image has more than 8 bits per channel"):
        hs.train(data, out=tmp_path / "run", value_range="data", image_size=64, device="cpu")
    with pytest.raises(OptionError, match="value_range 'wide': expected one of full, data"):
        hs.train(data, value_range="wide")


@pytest.mark.exhaustive
def test_the_exported_file_and_its_snippet_use_the_value_range_of_the_model(tmp_path: Path) -> None:
    data = write_12_bits(tmp_path / "data", {"dark": 20, "light": 20})
    run = hs.train(data, out=tmp_path / "run", value_range="data", image_size=64, device="cpu")
    exported = hs.export(run.folder, out=tmp_path / "model.onnx")  # raises an error if a probability differs
    image = str(data / "light" / "0.png")
    script = exported.snippets["python"].replace("image.jpg", image)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = hs.load(run.folder).predict(image)
    answer, best = done.stdout.splitlines()[0].rsplit(" ", 1)
    assert answer == expected.answer
    assert float(best) == pytest.approx(expected.probability, abs=WITHIN)
