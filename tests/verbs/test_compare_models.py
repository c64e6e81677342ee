from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import main
from random_images import COLOURS, write_classes, write_grouped_table

import headstart as hs
from headstart.errors import DataError


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, hs.Run]:
    """A table with groups, and a run on it."""
    folder = tmp_path_factory.mktemp("grouped")
    table = write_grouped_table(folder)
    return folder, hs.train(table, out=folder / "run", image_size=64, val=0.35, test=0.3, seed=1)


@pytest.mark.exhaustive
def test_two_models_are_compared_on_the_same_images(
    grouped: tuple[Path, hs.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = grouped
    other = hs.train(
        folder / "t.csv", out=tmp_path / "other", probe="centroid", image_size=64, val=0.35, test=0.3, seed=1
    )
    (found,) = hs.compare_models(run.folder, other.model_path, folder / "t.csv").results
    with open(tmp_path / "a.csv", "w") as file:
        file.write("")
    code, out, err = main(
        "compare", run.folder, other.model_path, folder / "t.csv", "--out", tmp_path / "d.csv", capsys=capsys
    )
    assert code == 0, err
    assert found.sentence in out
    with open(tmp_path / "d.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.first + found.second
    assert sum(row["right"] == "B" for row in rows) == found.second
    for row in rows:
        assert (row["A"] == row["label"]) == (row["right"] == "A")
    document = json.loads(main("compare", run.folder, run.folder, folder / "t.csv", "--json", capsys=capsys)[1])
    assert document[0]["p"] == 1
    assert main("compare", run.folder, folder / "t.csv", capsys=capsys)[0] == 2


@pytest.mark.exhaustive
def test_models_of_different_classes_are_compared_on_what_both_know(
    grouped: tuple[Path, hs.Run], tmp_path: Path
) -> None:
    _, run = grouped
    data = write_classes(tmp_path / "d", {"blue": 12, "red": 12}, first_seed=700)
    two = hs.train(data, out=tmp_path / "two", image_size=64)
    both = write_classes(tmp_path / "both", dict.fromkeys(COLOURS, 6), first_seed=800)
    with pytest.raises(DataError, match="has no class green"):
        hs.compare_models(run.folder, two.folder, both)
    (found,) = hs.compare_models(run.folder, two.folder, both, ignore_unknown=True).results
    assert found.count == 12
