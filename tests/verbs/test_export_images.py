"""Choice of the images to compare an exported file on; nothing is exported here (see test_export.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_images import random_image
from small_models import CLASSES, small_model

import headstart as hs
from headstart.errors import DataError
from headstart.model import Model
from headstart.model_file import MODEL_FILE
from headstart.verbs.export_images import ExportImages, images_for


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def run_with(folder: Path, model: Model, sets: list[str]) -> Path:
    """The parts of a run folder that exporting reads: model, and table of one image for each of ``sets``."""
    folder.mkdir()
    model.save(folder / MODEL_FILE)
    lines = ["path,label,split,content,left_out"]
    for i, name in enumerate(sets):
        random_image(i).save(folder / f"{i}.png")
        lines.append(f"{folder / f'{i}.png'},{CLASSES[i % 3]},{name},{i:02x},")
    (folder / "split.csv").write_text("\n".join(lines) + "\n")
    return folder


def chosen(model: Model, run: Path, *, calibrate: bool = False) -> ExportImages:
    return images_for(model, run, run, calibrate=calibrate, cache=None, progress=hs.progress.SilentProgress())


@pytest.mark.parametrize(
    ("sets", "places", "words"),
    [
        (["train", "val", "test", "val"], [1, 3], "val of {run}"),
        (["train", "test", "train", "test"], [1, 3], "test of {run}, which has no val"),
        (["train", "train"], [0, 1], "training images of {run}, which has no val"),
    ],
)
def test_a_run_without_val_is_compared_on_test_or_on_its_training_images_and_says_so(
    model: Model, tmp_path: Path, sets: list[str], places: list[int], words: str
) -> None:
    run = run_with(tmp_path / "run", model, sets)
    found = chosen(model, run)
    assert [Path(path).name for path in found.compared.paths] == [f"{i}.png" for i in places]
    assert found.words == words.format(run=run)
    assert found.compared.is_test == [sets[i] == "test" for i in places]


def test_training_images_are_divided_between_calibration_and_comparison(model: Model, tmp_path: Path) -> None:
    found = chosen(model, run_with(tmp_path / "run", model, ["train"] * 7), calibrate=True)
    assert len(found.compared.paths) == 4
    assert len(found.calibration) == 3
    assert not set(found.compared.paths) & set(found.calibration)
    with pytest.raises(DataError, match="no images left to calibrate int8 on"):
        chosen(model, run_with(tmp_path / "one", model, ["train"]), calibrate=True)


def test_a_run_without_any_image_names_the_remedy(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images to compare on\. Give others \(option data\)"):
        chosen(model, run_with(tmp_path / "run", model, []))
