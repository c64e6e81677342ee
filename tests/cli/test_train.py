"""``headstart train``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from commands import main

from headstart.cli import main as cli
from headstart.training.option import flag_name
from headstart.training.recipe import Recipe, options_of


def test_results_are_printed_after_training_and_progress_goes_to_stderr(trained: tuple[Path, str, str]) -> None:
    run, out, err = trained
    lines = out.splitlines()
    score = r"accuracy [\d.]+ % \(\d+/\d+\), 95 % CI [\d.]+-[\d.]+, macro F1 [\d.]+$"
    assert re.match(rf"cross-validation {score}", lines[0])  # first, because val is small
    assert re.match(rf"val {score}", lines[1])
    assert lines[-2:] == [f"Report: {run / 'report.html'}", f"Model:  {run / 'model.safetensors'}"]
    assert "2 classes; images: train" in err
    assert "\r" not in err
    assert "\x1b" not in err
    assert "warn" not in err.lower().replace("warning: ", "")


def test_no_network_is_needed_or_asked_for(run: Path, data: Path) -> None:
    """The run was trained with network access blocked."""
    assert (data.parent / "guard" / "stood").exists()
    assert (run / "model.safetensors").exists()


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
    assert "a resumed run keeps its original options" in err


def test_resume_goes_with_options_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["headstart", "train", "--resume", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "no run to resume" in capsys.readouterr().err


def test_data_beside_resume_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["headstart", "train", "images/", "--resume", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "--resume: a resumed run keeps its original data; leave DATA out." in capsys.readouterr().err


def test_help_lists_ten_options_first_and_the_others_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main("train", "--help", capsys=capsys)
    assert code == 0
    headings = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert headings == ["Options", "Data", "Features", "Head", "Fine-tuning", "Extending", "Evaluation", "Output"]
    first = out.split("\nOptions:\n")[1].split("\nData:\n")[0]
    assert re.findall(r"^  (--[a-z-]+)", first, re.MULTILINE) == [
        "--out", "--minutes", "--effort", "--backbone", "--image-size", "--unfreeze", "--epochs",
        "--device", "--watch", "--resume",
    ]  # fmt: skip
    given = set(re.findall(r"^  (--[a-z-]+)", out, re.MULTILINE))
    assert given >= {flag_name(name) for name in options_of()}


EVERY_OPTION = """
headstart train data --effort standard --backbone resnet18 --weights w.pth --image-size 96 --pool max --cut layer3
--value-range data --val 0.2 --test 0 --seed 7 --probe svm --single-logit --balance-classes --unfreeze layer2
--tune lora --lora-rank 4 --epochs 3 --lr 0.1 --views auto --fresh-views --no-flip --label-smoothing 0.2
--cutmix 0.3 --mixup 0.4 --feature-jitter 0.5 --update-batchnorm --gradual-unfreezing --target-accuracy 0.9
--accept-license --fit pad
"""


def test_every_option_reaches_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values as given, with absolute paths; auto means None."""
    seen = []

    def train(source: Path, *, recipe: Recipe, **_: object) -> NoReturn:
        seen.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("headstart.pipeline.train.train", train)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", EVERY_OPTION.split())
    with pytest.raises(SystemExit):
        cli.main()
    assert seen == [
        Recipe(
            effort="standard", backbone="resnet18", weights=str(tmp_path / "w.pth"), image_size=96, pool="max",
            cut="layer3", value_range="data", val=0.2, test=0.0, seed=7, probe="svm", single_logit=True,
            balance_classes=True, unfreeze="layer2", tune="lora", lora_rank=4, epochs=3, lr=0.1, views=None,
            fresh_views=True, flip=False, label_smoothing=0.2, cutmix=0.3, mixup=0.4, feature_jitter=0.5,
            update_batchnorm=True, gradual_unfreezing=True, target_accuracy=0.9, accept_license=True,
            fit="pad",
        )
    ]  # fmt: skip
