"""The predictor: what it reports about the images that it decodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_images import write_12_bits, write_classes
from small_models import small_model

from headstart.model import Model
from headstart.progress import SilentProgress


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(image_size=32, cut="layer1", pool="avg")


def said(model: Model, files: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    progress = SilentProgress()
    monkeypatch.setattr(progress, "say", texts.append, raising=False)
    model.predict(files, progress=progress)
    return [text for text in texts if "bits per channel" in text]


def test_predicting_12_bit_images_without_a_value_range_says_how_dark_they_are(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(map(str, write_12_bits(tmp_path / "deep", {"a": 3}).rglob("*.png")))
    (text,) = said(model, files, monkeypatch)
    assert text.startswith("Warning: 3 image(s) have 16 bits per channel and use 12 of them")
    assert "6.2 % of white" in text


def test_8_bit_images_are_not_mentioned(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "plain", {"a": 2})
    files = sorted(str(path) for path in (tmp_path / "plain").rglob("*.*"))
    assert said(model, files, monkeypatch) == []
