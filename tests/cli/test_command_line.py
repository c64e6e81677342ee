"""The command, from outside: a process of its own, its output, its exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import main
from pictures import picture, write_classes
from pyarrow import parquet
from typer.testing import CliRunner

from headstart.cli import main as cli

ROOT = Path(cli.__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("cli") / "colours", {"blue": 30, "red": 30})


@pytest.fixture(scope="module")
def run(data: Path, headstart) -> Path:
    """Trained in a process of its own, in which every address is refused: the offline default never asks for one."""
    guard = data.parent / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import os, socket\n"
        "def refuse(*a, **k): raise SystemExit('the network was asked for')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse; socket.create_connection = refuse\n"
        "open(os.path.join(os.path.dirname(__file__), 'stood'), 'w').close()\n"
    )
    path = os.pathsep.join(filter(None, [str(guard), os.environ.get("PYTHONPATH")]))
    out = data.parent / "run"
    done = headstart("train", data, "--out", out, "--image-size", 64, "--device", "cpu", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    score = r"\d+ of \d+ right, [\d.]+ % \(95 % interval [\d.]+-[\d.]+\); macro-F1 [\d.]+$"
    assert re.match(rf"cross-validation: {score}", lines[0])  # before val, which is small
    assert re.match(rf"val: {score}", lines[1])
    assert lines[-2:] == [f"Report: {out / 'report.html'}", f"Model:  {out / 'model.safetensors'}"]
    assert "2 classes, train" in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert "warn" not in done.stderr.lower().replace("warning: ", "")
    return out


def test_help_is_quick_and_imports_no_torch() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        script = "import sys; sys.argv = ['headstart', '--help']\nfrom headstart.cli.main import main\ntry: main()\n"
        script += (
            "except SystemExit: pass\nsys.exit(any(m in sys.modules for m in ('torch', 'timm', 'sklearn', 'numpy')))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, "something heavy was imported"
        assert "train" in done.stdout
    assert min(times) < 0.5


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "extract", "layers", "check", "cache", "demo"])
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["train"], 2, "Missing argument"),
        (["train", "nowhere"], 1, "Error: nowhere: no such folder or table."),
        (["train", "nowhere", "--effort", "huge"], 2, "huge"),
        (["train", "nowhere", "--image-size", "5"], 1, "at least 16 pixels"),
        (["evaluate", "nowhere"], 1, "no such model file"),
        (["predict", "nowhere", "x.jpg"], 1, "no such model file"),
        (["predict", "nowhere", "x.jpg", "--out", "x.xls"], 1, ".csv or .json or .parquet"),
        (["extract", ".", "--out", "x.txt"], 1, ".npz or .parquet"),
        (["layers", "resnet81"], 1, "Near it: resnet"),
        (["check", "nowhere"], 1, "no such folder"),
        (["fly"], 2, "No such command"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_a_status(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = main(*arguments, capsys=capsys)
    assert code == status
    assert says in err
    assert out == ""
    assert "Traceback" not in err
    if status == 1:
        assert len(err.splitlines()) == 1


def test_predict_lists_every_picture_and_says_what_it_cannot_read(
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
    assert "1 of 32 pictures cannot be read" in err


def test_predictions_go_to_csv_json_and_parquet_alike(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = tmp_path / 'ä, "quoted"\n.png'
    picture(3).save(strange)
    gone = tmp_path / "gone.png"
    pictures = [data / "red" / "1.png", strange, gone]
    for ending in ("csv", "json", "parquet"):
        code, _, err = main("predict", run, *pictures, "--top", 2, "--out", tmp_path / f"p.{ending}", capsys=capsys)
        assert code == 0
        assert "gone.png: no such file" in err
    import csv

    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    document = json.loads((tmp_path / "p.json").read_text())
    columns = parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert [r["path"] for r in table] == [d["path"] for d in document] == columns["path"] == [str(p) for p in pictures]
    assert [r["label"] or None for r in table] == [d["label"] for d in document] == columns["label"]
    assert columns["probability2"][1] == document[1]["top"][1]["probability"] == float(table[1]["probability2"])
    assert table[2]["error"] == document[2]["error"] == columns["error"][2] == "no such file or directory"


def test_only_unreadable_pictures_are_a_failure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main("predict", run, "gone.png", capsys=capsys)
    assert code == 1
    assert "no such file" in out
    assert "1 of 1" in err


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


def test_extracted_features_carry_path_and_label(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "d")
    (tmp_path / "d" / "red" / "0.png").write_bytes(b"")
    for ending in ("npz", "parquet"):
        code, out, err = main(
            "extract",
            tmp_path / "d",
            "--out",
            tmp_path / f"f.{ending}",
            "--image-size",
            64,
            "--cut",
            "blocks.2",
            capsys=capsys,
        )
        assert code == 0, err
        assert "59 images, 40 features each" in out
        assert "red/0.png: empty file" in err
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        features, paths, labels = file["features"], file["paths"], file["labels"]
    table = parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert features.shape == (59, 40)
    assert features.dtype == np.float32
    assert [Path(p).parent.name for p in paths] == labels.tolist()
    assert table["path"] == paths.tolist()
    assert np.array_equal(np.array(table["features"], np.float32), features)


def test_layers_prints_groups_in_order_with_totals(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main("layers", "resnet18", "--classes", 5, "--unfreeze", "layer4", "--unfreeze", "fc", capsys=capsys)
    assert code == 0
    table, boundaries = out.split("\n\n")
    names = [line.split()[0] for line in table.splitlines()[2:-2]]
    assert names == ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4", "global_pool", "fc"]
    assert re.search(r"^layer3 +256 x 14 x 14 +100,352 +77 % +8,393,728$", boundaries, re.MULTILINE)
    assert boundaries.splitlines()[-1].split() == ["head", "512", "1,024", "100", "%", "0"]
    assert re.search(r"layer4 .* 512 x 7 x 7 +8,393,728 +yes", out)
    assert re.search(r"layer3 .* no", out)
    assert "Weights: 11,179,077, of them 8,396,293 trainable and 2,782,784 not." in out
    assert "BatchNorm statistics, which no gradient changes: 9,600." in out


@pytest.mark.parametrize(("backbone", "trained"), [("resnet18", 513_000), ("convnext_atto", 321_000)])
def test_by_default_the_classifier_alone_is_trainable(
    backbone: str, trained: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = main("layers", backbone, "--image-size", 64, "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["trainable"] == trained


def test_check_names_what_is_wrong_and_strict_fails(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "d")
    (tmp_path / "d" / "red" / "bad.jpg").write_bytes(b"")
    shutil.copy(data / "red" / "2.png", tmp_path / "d" / "red" / "again.jpg")
    code, out, _ = main("check", tmp_path / "d", "--image-size", 64, capsys=capsys)
    assert code == 0
    assert "61 of 62 images usable" in out
    assert "red/bad.jpg: empty file (0 bytes)" in out
    assert "red/2.png = red/again.jpg" in out or "red/again.jpg = red/2.png" in out
    assert "red/again.jpg: is PNG" in out
    assert main("check", tmp_path / "d", "--strict", "--image-size", 64, capsys=capsys)[0] == 1


def test_no_network_is_needed_or_asked_for(run: Path, data: Path) -> None:
    """The run was made where every address is refused."""
    assert (data.parent / "guard" / "stood").exists()
    assert (run / "model.safetensors").exists()


@pytest.mark.exhaustive
def test_file_names_that_are_no_unicode_are_carried_through(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    headstart,
) -> None:
    name = os.fsencode(tmp_path) + b"/odd\xff.png"
    picture(1).save(tmp_path / "x.png")
    try:
        os.rename(os.fsencode(tmp_path / "x.png"), name)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    for ending in ("csv", "parquet"):
        assert main("predict", run, tmp_path, "--out", tmp_path / f"p.{ending}", capsys=capsys)[0] == 0
    assert b"odd\xff.png" in (tmp_path / "p.csv").read_bytes()
    shown = headstart("predict", run, tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert shown.returncode == 0
    assert "odd" in shown.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines()}
    assert "timm.models" in imported
    assert not imported & {"torch._dynamo.symbolic_convert", "sklearn"}, "a start of two seconds more"


@pytest.mark.exhaustive
def test_ctrl_c_stops_with_one_line_and_leaves_no_empty_run(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headstart", "train", str(data), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HEADSTART_CACHE": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    while not (tmp_path / "run").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("Stopped.")
    assert "Traceback" not in err
    if (tmp_path / "run").exists():  # on a busy machine there may be something to go on with by then
        assert (tmp_path / "run" / "log.jsonl").exists()
        assert "To go on with this run" in err


@pytest.mark.parametrize(
    ("given", "named"), [(["--epochs", "20"], "--epochs"), (["--flip"], "--flip"), (["--effort", "auto"], "--effort")]
)
def test_resume_takes_no_other_option(
    given: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["headstart", "train", "--resume", str(tmp_path), *given])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert named in err
    assert "a run is resumed" in err


def test_resume_goes_with_options_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["headstart", "train", "--resume", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "no run that could go on" in capsys.readouterr().err
