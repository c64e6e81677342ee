"""The command in a separate process: output and exit status."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import all_commands, main

from headstart.cli import main as cli


def test_help_is_quick_and_imports_no_torch() -> None:
    """In processor time, which other processes disturb less."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        script = "import sys; sys.argv = ['headstart', '--help']\nfrom headstart.cli.main import main\ntry: main()\n"
        script += "except SystemExit: pass\nheavy = {'torch', 'timm', 'sklearn', 'numpy', 'rich'} & set(sys.modules)\n"
        script += "sys.exit(bool(heavy))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, "something heavy was imported"
        assert "train" in done.stdout
    assert min(times) < 0.35


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.stdout


def test_every_command_is_imported_from_the_module_that_the_group_names() -> None:
    for name, command in all_commands().items():
        assert command.name == name
        assert command.help
        assert command.callback.__module__ == f"headstart.cli.{cli.COMMANDS[name][0]}"


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
        (["layers", "resnet81"], 1, "Similar names: resnet"),
        (["check", "nowhere"], 1, "no such folder"),
        (["fly"], 2, "No such command"),
        (["train", "nowhere", "--epoch", "3"], 2, "No such option '--epoch'"),
        (["train", "nowhere", "--balance"], 2, "--balance is now called --balance-classes."),
        (["train", "nowhere", "--wanted-accuracy", "0.9"], 2, "--wanted-accuracy is now called --target-accuracy."),
        (["train", "nowhere", "--image-size", "0"], 1, "--image-size 0: expected at least 16 pixels"),
        (["train", "nowhere", "--head-epochs", "3"], 1, "--head-epochs: requires --head; "),
        (["train", "nowhere", "--head", "8-relu"], 1, "--head '8-relu': 'relu' is not understood"),
        (["check", "nowhere", "--backbone", ""], 1, "--backbone: the text is empty"),
        (["compare", "a", "b"], 2, "expected DATA, or MODEL_A MODEL_B DATA"),
        (["evaluate", "nowhere", "--label-column", "x"], 2, "--label-column: describes a table"),
    ],
)
def test_a_usage_error_is_one_line_and_an_exit_status(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = main(*arguments, capsys=capsys)
    assert code == status
    assert says in err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.exhaustive
def test_ctrl_c_stops_with_one_line_and_leaves_no_empty_run(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headstart", "train", str(data), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HEADSTART_CACHE": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore SIGINT
    )
    while not (tmp_path / "run").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("Stopped.")
    assert "Traceback" not in err
    if (tmp_path / "run").exists():  # on a busy machine a checkpoint may exist by then
        assert (tmp_path / "run" / "log.jsonl").exists()
        assert "To go on with this run" in err


def test_a_closed_output_pipe_ends_the_command_silently(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", "cache"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"HEADSTART_CACHE": str(tmp_path)},
    )
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, b"")


def test_the_version_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--version", capsys=capsys) == (0, f"{importlib.metadata.version('headstart')}\n", "")


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main(capsys=capsys)
    assert code == 2
    assert "Usage: headstart" in out + err
