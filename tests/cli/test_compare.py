"""``headstart compare``: what is refused before any work, and two models on the same images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import main


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--only", "forests"], 1, "compare forests: no such group"),
        (["--only", ""], 1, "compare nothing: no such group"),
        (["--seconds", "-1"], 2, "--seconds"),
        (["--val", "2"], 1, "val 2.0"),
    ],
)
def test_invalid_comparisons_are_refused_before_any_work(
    options: list[str], code: int, words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = main("compare", data, "--out", tmp_path / "out", *options, capsys=capsys)
    assert (status, out) == (code, "")
    assert words in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_models_are_compared_in_a_sentence_a_document_and_a_table(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "differing.csv"
    code, out, err = main("compare", run, run, data, "--out", file, capsys=capsys)
    assert code == 0, err
    assert out.splitlines()[-1] == f"{file}: the 0 images that the two models classify differently"
    assert list(csv.DictReader(file.open(newline=""))) == []
    code, out, err = main("compare", run, run, data, "--json", capsys=capsys)
    assert code == 0, err
    assert json.loads(out)[0]["p"] == 1
    assert main("compare", run, run, data, "--out", tmp_path / "out", capsys=capsys)[0] == 1
