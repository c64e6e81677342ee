"""``headstart predict`` and ``evaluate``, and JSON on stdout."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from commands import main
from pyarrow import parquet
from random_images import random_image


def test_predict_lists_every_image_and_reports_unreadable_ones(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    code, out, err = main("predict", run, data / "red" / "1.png", bad, data / "blue", "--top", 2, capsys=capsys)
    assert code == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert len(lines) == 32
    assert lines[0][0] == str(data / "red" / "1.png")
    assert re.fullmatch(r"(red|blue) [\d.]+ %  (red|blue) [\d.]+ %", lines[0][1])
    assert lines[1] == [str(bad), "empty file (0 bytes)"]
    assert "1 of 32 images cannot be read" in err


@pytest.mark.slow
def test_csv_json_and_parquet_contain_the_same_predictions(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = tmp_path / 'ä, "quoted"\n.png'
    random_image(3).save(strange)
    gone = tmp_path / "gone.png"
    images = [data / "red" / "1.png", strange, gone]
    for ending in ("csv", "json", "parquet"):
        code, _, err = main("predict", run, *images, "--top", 2, "--out", tmp_path / f"p.{ending}", capsys=capsys)
        assert code == 0
        assert "gone.png: no such file" in err
    import csv

    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    document = json.loads((tmp_path / "p.json").read_text())
    columns = parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert [r["path"] for r in table] == [d["path"] for d in document] == columns["path"] == [str(p) for p in images]
    assert [r["label"] or None for r in table] == [d["label"] for d in document] == columns["label"]
    assert columns["probability2"][1] == document[1]["top"][1]["probability"] == float(table[1]["probability2"])
    assert table[2]["error"] == document[2]["error"] == columns["error"][2] == "no such file or directory"


def test_only_unreadable_images_are_a_failure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main("predict", run, "gone.png", capsys=capsys)
    assert code == 1
    assert "no such file" in out
    assert "1 of 1" in err


@pytest.mark.slow
def test_json_is_one_document_on_stdout(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--image-size", 64, "--device", "cpu", "--json")
    documents = {}
    for command in (
        ("train", data, "--out", tmp_path / "run", *quick),
        ("evaluate", run, "--json"),
        ("predict", run, data / "red" / "1.png", "--json"),
        ("extract", data, "--out", tmp_path / "f.npz", *quick),
        ("layers", "resnet18", "--json"),
        ("check", data, "--json", "--files-only"),
    ):
        code, out, err = main(*command, capsys=capsys)
        assert code == 0, err
        documents[command[0]] = json.loads(out)
    assert documents["train"]["scores"]["val"]["count"] > 0
    assert documents["evaluate"]["val"]["confusion"] == documents["train"]["scores"]["val"]["confusion"]
    assert documents["predict"][0]["label"] in ("blue", "red")
    assert documents["extract"]["images"] == 60
    assert documents["layers"]["parameters"] == 11_689_512
    assert documents["layers"]["statistics"] == 9_600
    assert documents["layers"]["boundaries"][-1]["name"] == "head"
    assert documents["check"]["usable"] == 60


@pytest.mark.exhaustive
def test_file_names_that_are_not_unicode_are_preserved(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    headstart,
) -> None:
    name = os.fsencode(tmp_path) + b"/odd\xff.png"
    random_image(1).save(tmp_path / "x.png")
    try:
        os.rename(os.fsencode(tmp_path / "x.png"), name)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    for ending in ("csv", "parquet"):
        assert main("predict", run, tmp_path, "--out", tmp_path / f"p.{ending}", capsys=capsys)[0] == 0
    assert "odd\\xff.png" in (tmp_path / "p.csv").read_text()
    shown = headstart("predict", run, tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert shown.returncode == 0
    assert "odd" in shown.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines()}
    assert "timm.models" in imported
    assert not imported & {"torch._dynamo.symbolic_convert", "sklearn"}, "a start of two seconds more"
