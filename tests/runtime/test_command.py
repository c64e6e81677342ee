"""``headstart-runtime`` and ``headstart predict FILE.onnx``: the same output for the same file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import main
from random_images import random_image
from small_onnx import small_onnx

from headstart.runtime import command


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments: a file, two images and what is no image."""
    monkeypatch.chdir(tmp_path)
    small_onnx(Path("m.onnx"))
    random_image(0, (250, 20, 20)).save("red.png")
    random_image(1, (20, 20, 250)).save("blue.png")
    Path("bad.png").write_text("words")
    return ["m.onnx", "red.png", "blue.png", "bad.png", "gone.png"]


def test_both_commands_print_the_same(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--top", "2"], ["--json"]):
        status, out, err = main("predict", *names, *options, capsys=capsys)
        assert command.main(["predict", *names, *options]) == status == 0
        assert tuple(capsys.readouterr()) == (out, err)
    assert err == "2 of 4 images cannot be read. The first: bad.png: not an image: a text file.\n"
    assert [entry["label"] for entry in json.loads(out)] == ["red", "blue", None, None]
    assert [entry["error"] for entry in json.loads(out)][2:] == [
        "not an image: a text file",
        "no such file or directory",
    ]


def test_predictions_are_written_as_csv_and_json(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for ending in ("csv", "json"):
        assert command.main(["predict", *names, "--out", f"runtime.{ending}"]) == 0
        assert main("predict", *names, "--out", f"headstart.{ending}", capsys=capsys)[0] == 0
        assert Path(f"runtime.{ending}").read_bytes() == Path(f"headstart.{ending}").read_bytes()
    with open("runtime.csv", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["red", "blue", "", ""]


def test_a_file_that_is_not_calibrated_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_onnx(Path("m.onnx"), is_calibrated=False, calibration="Not calibrated: no validation images.")
    random_image(0).save("a.png")
    for run in (command.main, lambda words: main(*words, capsys=capsys)):
        result = run(["predict", "m.onnx", "a.png", "--json"])
        out, err = capsys.readouterr() if isinstance(result, int) else result[1:]
        assert "Not calibrated: no validation images." in err
        assert json.loads(out)[0]["uncalibrated"] == "Not calibrated: no validation images."


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["predict", "gone.onnx", "red.png"], 1, "Error: gone.onnx: no such file."),
        (["predict", "red.png", "red.png"], 1, "red.png: expected an ONNX file (.onnx) written by headstart export."),
        (["predict", "m.onnx", "bad.png"], 1, "1 of 1 images cannot be read."),
        (["predict", "m.onnx", "."], 1, "Error: .: a folder."),
        (["predict", "m.onnx", "red.png", "--out", "a.txt"], 1, "expected a name that ends in .csv or .json."),
        (["predict", "m.onnx", "red.png", "--top", "0"], 2, "'0': expected a whole number of at least 1"),
        (["predict", "m.onnx"], 2, "required: IMAGE"),
        (["serve", "m.onnx", "--port", "99999"], 2, "'99999': expected a whole number of at least 0 and at most 65535"),
        (["serve", "m.onnx", "--max-images", "1.5"], 2, "expected a whole number of at least 1"),
        (["serve", "m.onnx", "--timeout", "nan"], 2, "expected a number of at least 0.1"),
        (["serve", "gone.onnx"], 1, "Error: gone.onnx: no such file."),
        (["serve", "m.onnx", "--key", "ä"], 1, "API key may contain ASCII"),
        (["nothing"], 2, "invalid choice: 'nothing'"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_status(
    words: list[str], status: int, said: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == status
    _, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "m.onnx", "red.png", "--device", "cuda"], "an ONNX file runs on the CPU"),
        (["predict", "m.onnx", "red.png", "--out", "shards"], "name it with --out NAME.csv"),
        (["serve", "m.onnx", "--corrections", "kept"], "--corrections: not for an ONNX file"),
        (["serve", "m.onnx", "--device", "cuda"], "--device cuda: not for an ONNX file"),
        (["serve", "gone.onnx"], "gone.onnx: no such file"),
    ],
)
def test_headstart_says_what_an_exported_file_cannot_do(
    words: list[str], said: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = main(*words, capsys=capsys)
    assert code in (1, 2)
    assert said in err
    assert err.startswith("Error: ")
