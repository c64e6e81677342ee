"""What was measured in training is what runs in production: one picture, four ways, the same probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import browsing, chromium
from pictures import write_classes
from PIL import ExifTags, Image
from served import until
from servers import serving

import headstart as hs
from headstart.serve.app import build_app
from headstart.serve.corrections import Corrections
from headstart.serve.service import Service

WITHIN = 1e-4


def photograph(path: Path) -> bytes:
    """Large enough to be reduced while it is decoded, and turned by its EXIF tag."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1640, 1230), Image.Resampling.BICUBIC)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    image.save(path, "JPEG", quality=92, exif=tags)
    return path.read_bytes()


@pytest.mark.exhaustive
def test_a_picture_has_the_same_probabilities_by_predict_the_export_the_server_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.serve.service.MANY", 1)
    data = write_classes(tmp_path / "colours", {"blue": 30, "green": 30, "red": 30})
    run = hs.train(data, out=tmp_path / "run", image_size=64, device="cpu")
    taken = photograph(tmp_path / "picture.jpg")
    model = hs.load(run.folder)
    expected = model.predict(tmp_path / "picture.jpg", top=3)
    assert expected.label is not None
    assert 0.01 < expected.probability < 0.9999  # or the ways could differ unseen
    chances = dict(expected.top)

    exported = hs.export(run.folder, out=tmp_path / "model.onnx")
    script = exported.snippets["python"].replace("picture.jpg", str(tmp_path / "picture.jpg"))
    script += "\nprint(json.dumps(dict(zip(about['classes'], chances))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    by_export = json.loads(done.stdout.splitlines()[-1])
    answer, best = done.stdout.splitlines()[0].rsplit(" ", 1)
    assert answer == expected.answer
    assert float(best) == pytest.approx(expected.probability, abs=WITHIN)

    service = Service(model, run=run.folder, device="cpu")
    app = build_app(service, corrections=Corrections(tmp_path / "kept"), log=None)
    with serving(app, service.traffic) as site:
        until(lambda: httpx.get(f"{site}/readyz").status_code == 200, seconds=60)
        (told,) = httpx.post(f"{site}/v1/predict", files={"files": ("picture.jpg", taken)}).json()["predictions"]
        by_server = {own["label"]: own["probability"] for own in told["probabilities"]}
        for way in (by_export, by_server):
            assert way == pytest.approx(chances, abs=WITHIN)
        assert told["answer"] == expected.answer
        with chromium() as browser, browsing(browser, site) as (page, wrong):
            page.set_input_files("input[type=file] >> nth=0", str(tmp_path / "picture.jpg"))
            page.get_by_role("button", name="Where it looked").wait_for()
            shown = page.locator("main").inner_text().replace("\xa0", " ")
            assert not wrong
    for label, chance in chances.items():
        assert label in shown
        assert f"{100 * chance:.1f} %" in shown or not 0.001 < chance < 0.999
