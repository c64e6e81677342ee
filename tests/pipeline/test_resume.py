"""Whole runs that fine-tune: the ladder, the log, and stops of every kind."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from random_images import mislabel, write_classes
from safetensors.torch import save_file
from torch import Tensor, nn

import headstart as hs
from headstart.backbone.split import INPUT, SplittableBackbone
from headstart.backbone.weights import fingerprint, load_backbone, random_backbone
from headstart.data import open_table
from headstart.errors import DataError, HeadstartError, OptionError, RunError
from headstart.pipeline.resume import resume
from headstart.progress import SilentProgress
from headstart.runs import Event
from headstart.runs.folder import open_like, read_start
from headstart.runs.log import read_log
from headstart.training.finetune import FineTuneResult, fine_tune
from headstart.training.ladder import FOLDS
from headstart.training.tuning import trained_names

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]


class Stopped(Exception):
    pass


CHOICES = {
    "image_size": 64,
    "device": "cpu",
    "effort": "quick",
    "unfreeze": "blocks.6",
    "epochs": 4,
    "views": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours are no help here: each class is a mixture, so that the probe makes mistakes that tuning may mend."""
    return write_classes(tmp_path_factory.mktemp("data") / "mixed", {"first": 24, "second": 24})


@pytest.fixture(scope="module")
def hard(data: Path) -> Path:
    """Labels that the images do not decide: a third of each class is of the other."""
    return mislabel(data, "first", "second", 24)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Choices for a run that takes a moment."""
    file = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(random_backbone("test_resnet", image_size=32, seed=3).module.state_dict(), file)
    return {"backbone": "test_resnet", "weights": str(file), "image_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def run(hard: Path, tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    return hs.train(hard, out=tmp_path_factory.mktemp("runs") / "whole", **CHOICES)


def test_the_ladder_names_every_rung_and_keeps_what_was_asked_for_by_name(run: hs.Run) -> None:
    assert [rung.name for rung in run.rungs][:2] == ["kNN", "probe"]
    assert run.rungs[2].name == "fine-tune from blocks.6"
    assert run.rungs[2].epochs > 0
    assert run.rungs[2].decision
    assert run.best == "fine-tune from blocks.6"
    probe = run.rungs[1]
    assert run.rungs[2].decision.startswith(f"kept as requested; probe: {probe.correct} of {probe.count}; ")
    assert "kept as requested; probe: " in run.report_path.read_text()
    assert hs.load_run(run.folder).rungs == run.rungs


@pytest.mark.exhaustive
@pytest.mark.parametrize("gradual", [False, True])
def test_a_rung_begins_from_pretrained_weights_and_probe_unless_it_goes_on(
    gradual: bool, hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, str, str]] = []

    def noting(
        split: SplittableBackbone, boundary: str, head: nn.Module, *rest: object, **given: object
    ) -> FineTuneResult:
        begun.append((boundary, fingerprint(split.module.state_dict()), fingerprint(head.state_dict())))
        return fine_tune(split, boundary, head, *rest, **given)  # type: ignore[arg-type]

    monkeypatch.setattr("headstart.pipeline.train_rung.fine_tune", noting)
    monkeypatch.setattr("headstart.pipeline.fine_tune.paired_p", lambda before, after: 0.0)
    choices = CHOICES | {"effort": "standard", "unfreeze": None, "epochs": 1, "gradual_unfreezing": gradual}
    hs.train(hard, out=tmp_path / "run", **choices)
    first, second = (own[-1] for own in (begun[: len(begun) // 2], begun[len(begun) // 2 :]))  # the folds come before
    assert (first[0], second[0]) == ("blocks.5", "blocks.4")
    assert (first[1:] != second[1:]) == gradual
    assert (first[1] != second[1]) == gradual


GRADUAL = {"effort": "standard", "epochs": 1, "views": 1, "gradual_unfreezing": True}


@pytest.fixture
def climbing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rung is climbed, and reports are brief."""
    from headstart.pipeline import write

    report = write.write_report
    monkeypatch.setattr(write, "write_report", lambda *given, **named: report(*given, **named | {"brief": True}))
    monkeypatch.setattr("headstart.pipeline.train.map_images", lambda *_given: None)
    monkeypatch.setattr("headstart.pipeline.fine_tune.paired_p", lambda before, after: 0.0)
    monkeypatch.setattr("headstart.pipeline.fine_tune.DEEPER_FROM", 0.0)


def test_gradual_folds_go_on_from_the_rung_below_too_and_after_a_stop_as_well(
    climbing: None, hard: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-validation must train rungs in sequence, like the final model."""
    begun: list[tuple[str, str]] = []
    ended: list[tuple[str, str]] = []

    def noting(
        split: SplittableBackbone, boundary: str, head: nn.Module, *rest: object, **given: object
    ) -> FineTuneResult:
        begun.append((fingerprint(split.module.state_dict()), fingerprint(head.state_dict())))
        tuned = fine_tune(split, boundary, head, *rest, **given)  # type: ignore[arg-type]
        ended.append((fingerprint(split.module.state_dict()), fingerprint(tuned.head.state_dict())))
        return tuned

    monkeypatch.setattr("headstart.pipeline.train_rung.fine_tune", noting)
    whole = hs.train(hard, out=tmp_path / "whole", **tiny, **GRADUAL)
    first = FOLDS + 1  # trainings of the first rung: each fold, and all images
    assert len(begun) == 2 * first
    assert begun[first:] == ended[:first]

    def stop(event: Event) -> None:
        if event.kind == "rung" and event["name"].startswith("fine-tune"):
            raise Stopped

    with pytest.raises(Stopped):
        hs.train(hard, out=tmp_path / "run", listener=stop, **tiny, **GRADUAL)
    del begun[:]
    again = resume(tmp_path / "run")
    assert begun == ended[:first]
    assert again.model_path.read_bytes() == whole.model_path.read_bytes()


def test_finished_is_emitted_after_everything_is_on_disk(
    climbing: None, hard: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    there: list[set[str]] = []

    def listener(event: Event) -> None:
        if event.kind == "finished":
            there.append({file.name for file in (tmp_path / "run").iterdir()})
            assert not (tmp_path / "run" / "checkpoints" / "current.safetensors").exists()
        assert event.kind == "finished" or not there  # it is the last one

    hs.train(hard, out=tmp_path / "run", listener=listener, **tiny)
    assert len(there) == 1
    assert {"run.json", "report.html", "README.md", "model.safetensors", "predictions.csv", "scores.json"} <= there[0]


def test_a_warm_cache_changes_no_bit_of_what_is_trained(
    climbing: None, hard: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Law 11: no engine is built where features are cached, and none may leave anything behind that training sees."""
    cold, warm = (
        hs.train(hard, out=tmp_path / name, cache=tmp_path / "cache", **tiny, unfreeze="layer4", epochs=1, views=1)
        for name in ("cold", "warm")
    )
    assert cold.model_path.read_bytes() == warm.model_path.read_bytes()


TWICE = {"unfreeze": "layer4", "epochs": 2, "views": 2}


class Counting(SilentProgress):
    """Records the number of units per update of each task."""

    def __init__(self) -> None:
        self.ticks: dict[str, list[int]] = {}
        self.totals: dict[str, int] = {}

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        own = self.ticks.setdefault(name, [])
        self.totals[name] = self.totals.get(name, 0) + total
        yield own.append


def test_every_step_of_a_cross_validated_run_reports_progress_in_small_steps(
    climbing: None, hard: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Every step is a task with an update per batch, fold or fit."""
    counted = Counting()
    hs.train(hard, out=tmp_path / "run", progress=counted, cache=tmp_path / "cache", **tiny, **TWICE)
    least = {
        "Reading images": 1,
        "Running the backbone": 32,
        "Cross-validating the classifier": 1,
        "Running the backbone up to layer3": 32,
        "Fine-tuning": 32,
        "Judging": 64,
        "Evaluating": 32,
    }
    for name, most in least.items():
        assert counted.ticks[name], name
        assert max(counted.ticks[name]) <= most, name
        assert sum(counted.ticks[name]) == counted.totals[name], name
    assert {"Comparing engines", "Writing results and report"} <= set(counted.ticks)


@pytest.mark.exhaustive
def test_where_the_probe_leaves_little_nothing_deeper_is_tried(
    hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.pipeline.fine_tune.DEEPER_FROM", 100.0)
    monkeypatch.setattr("headstart.pipeline.fine_tune.paired_p", lambda before, after: 0.0)
    run = hs.train(hard, out=tmp_path / "run", **CHOICES | {"effort": "standard", "unfreeze": None, "epochs": 1})
    assert [rung.name for rung in run.rungs] == ["kNN", "probe", "fine-tune from blocks.6"]
    assert "below 100.0, no deeper rung is tried" in run.rungs[2].decision


def test_the_run_writes_down_its_log_its_curves_and_what_stayed_frozen(run: hs.Run) -> None:
    """Law 3."""
    events = read_log(run.folder)
    kinds = [entry["event"] for entry in events]
    assert kinds[0] == "images"
    assert kinds[-1] == "finished"
    assert {"engine", "plan", "stage", "rung", "epoch"} <= set(kinds)
    assert [entry["epoch"] for entry in events if entry["event"] == "epoch"] == [0, 1, 2, 3]
    assert list((run.folder / "tensorboard").glob("events.out.tfevents.*"))
    document = json.loads((run.folder / "run.json").read_text())
    assert document["frozen"]["frozen_before"] == document["frozen"]["frozen_after"]
    assert 'id="ladder"' in run.report_path.read_text()


def test_the_saved_model_gives_the_probabilities_that_the_run_wrote_down(run: hs.Run) -> None:
    """Law 5, of a fine-tuned model."""
    again = hs.evaluate(run.folder)
    for part in again:
        assert part.scores.correct == run.results[part.scores.name].correct
        assert part.scores.log_loss == pytest.approx(run.results[part.scores.name].log_loss, abs=1e-4)


def test_a_fine_tuned_model_holds_the_trained_weights(run: hs.Run) -> None:
    from headstart.backbone.pixel_net import split_backbone

    backbone = load_backbone(image_size=64)
    model = hs.load(run.model_path)
    tuned = model.net.backbone.module.state_dict()
    same = {name for name, tensor in backbone.module.state_dict().items() if tensor.equal(tuned[name])}
    behind = set(trained_names(split_backbone(backbone), "blocks.5"))
    assert {name for name in tuned if name not in same} <= behind
    assert len(same) < len(tuned)
    assert fingerprint(tuned) == model.net.backbone.fingerprint


@pytest.mark.exhaustive
def test_from_scratch_trains_every_weight_from_random_values(hard: Path, tmp_path: Path) -> None:
    """Law 14."""
    begun: list[dict[str, Tensor]] = []

    def noting(split: SplittableBackbone, boundary: str, *rest: object, **given: object) -> FineTuneResult:
        begun.append({name: tensor.clone() for name, tensor in split.module.state_dict().items()})
        assert boundary == INPUT
        assert rest[3].tuning.update_batchnorm  # type: ignore[attr-defined]
        return fine_tune(split, boundary, *rest, **given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.pipeline.train_rung.fine_tune", noting)
        choices = {"image_size": 32, "device": "cpu", "effort": "quick", "epochs": 1, "scratch": True}
        run = hs.train(hard, out=tmp_path / "run", **choices)
    pretrained = load_backbone(image_size=32).module.state_dict()
    again = random_backbone("tf_efficientnet_lite0", image_size=32, seed=0).module.state_dict()
    other = random_backbone("tf_efficientnet_lite0", image_size=32, seed=1).module.state_dict()
    for name, tensor in begun[0].items():
        assert torch.equal(tensor, again[name])
        if tensor.ndim == 4:
            assert not torch.equal(tensor, pretrained[name])
            assert not torch.equal(tensor, other[name])
    assert run.rungs[2].name == "fine-tune all layers"
    assert json.loads((run.folder / "run.json").read_text())["backbone"].startswith("random, seed 0")


@pytest.mark.exhaustive
def test_so_does_one_with_another_head_and_batchnorm_that_learns(
    hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 4."""
    from headstart.pipeline import train_rung
    from headstart.runs import log

    choices = CHOICES | {"head": "8-0.2", "update_batchnorm": True}
    whole = hs.train(hard, out=tmp_path / "whole", **choices)
    monkeypatch.setattr(train_rung, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train_rung, "SAVE_AT_MOST", 1e9)
    write = log.RunLog.__call__

    def stopping(self: log.RunLog, event: hs.Event) -> None:
        write(self, event)
        if event.kind == "epoch" and event["epoch"] == 2:
            raise Stopped

    monkeypatch.setattr(log.RunLog, "__call__", stopping)
    with pytest.raises(Stopped):
        hs.train(hard, out=tmp_path / "run", **choices)
    monkeypatch.setattr(log.RunLog, "__call__", write)
    assert resume(tmp_path / "run").model_path.read_bytes() == whole.model_path.read_bytes()


@pytest.mark.exhaustive
@pytest.mark.parametrize("stop_at", [1.0, 0.0, 3.0])
def test_a_run_that_was_stopped_ends_as_if_it_never_had_been(
    stop_at: float, run: hs.Run, hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 4, in one process: stopped at the end of an epoch, right before its checkpoint."""
    from headstart.pipeline import train_rung
    from headstart.runs import log

    monkeypatch.setattr(train_rung, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train_rung, "SAVE_AT_MOST", 1e9)
    write = log.RunLog.__call__

    def stopping(self: log.RunLog, event: hs.Event) -> None:
        write(self, event)
        if event.kind == "epoch" and event["epoch"] == stop_at:
            raise Stopped

    monkeypatch.setattr(log.RunLog, "__call__", stopping)
    with pytest.raises(Stopped):
        hs.train(hard, out=tmp_path / "run", **CHOICES)
    with pytest.raises(RunError, match="--resume"):
        hs.load_run(tmp_path / "run")
    monkeypatch.setattr(log.RunLog, "__call__", write)
    again = resume(tmp_path / "run")
    assert again.model_path.read_bytes() == run.model_path.read_bytes()
    assert [e["epoch"] for e in read_log(again.folder) if e["event"] == "epoch"] == [0, 1, 2, 3]
    with pytest.raises(RunError, match="finished"):
        resume(tmp_path / "run")


@pytest.mark.exhaustive
def test_a_killed_command_goes_on(hard: Path, tmp_path: Path) -> None:
    """Law 4, with SIGKILL."""
    arguments = ["--image-size", "64", "--device", "cpu", "--effort", "quick", "--unfreeze", "blocks.6"]
    command = [sys.executable, "-m", "headstart", "train", str(hard), *arguments, "--epochs", "4", "--views", "2"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    cache = os.environ | {"HEADSTART_CACHE": str(tmp_path / "cache")}
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True, env=cache)
    started = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    while not any(entry["event"] == "epoch" for entry in read_log(out)):
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (out / "run.json").exists()
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "train", "--resume", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.exhaustive
def test_ctrl_c_says_how_to_go_on(hard: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--image-size", "64", "--effort", "quick", "--unfreeze", "blocks.5", "--epochs", "500"]
    command = [sys.executable, "-m", "headstart", "train", str(hard), "--out", str(out), *arguments]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    while not any(entry["event"] == "stage" and entry["stage"] != "probe" for entry in read_log(out)):
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert f"headstart train --resume {out}" in said
    assert "Traceback" not in said


def test_resuming_on_other_images_is_refused(hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.pipeline import fit as module

    data = shutil.copytree(hard, tmp_path / "data")
    monkeypatch.setattr(module, "fit_classifier", lambda *_given, **_named: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        hs.train(data, out=tmp_path / "run", **CHOICES)
    monkeypatch.undo()
    (data / "first" / "0.png").unlink()
    with pytest.raises(RunError, match="have changed since this run began"):
        resume(tmp_path / "run")


CHANGED = {
    "weights file": "0" * 64,
    "backbone": "1" * 64,
    "preprocessing": "Whole images are resized to 32 x 32 pixels",
    "version of headstart": "0.0.1",
    "version of torch": "1.13.1",
    "version of timm": "0.9.0",
    "processor": "VSX, no bfloat16, no AMX",
    "device": "cuda, Another GPU",
}


@pytest.fixture(scope="module")
def stopped(hard: Path, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped once its images were read."""

    def stop(event: Event) -> None:
        if event.kind == "engine":
            raise Stopped

    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped):
        hs.train(hard, out=folder, listener=stop, **tiny)
    return folder


@pytest.mark.parametrize("name", list(CHANGED))
def test_resuming_under_other_conditions_is_refused_with_what_changed(name: str, stopped: Path) -> None:
    """Law 4: what the bits depend on beside the images."""
    file = stopped / "start.json"
    begun = file.read_text()
    document = json.loads(begun)
    assert document["conditions"][name] != CHANGED[name]
    document["conditions"][name] = CHANGED[name]
    file.write_text(json.dumps(document))
    try:
        with pytest.raises(RunError, match=rf"the {name} has changed: .* when the run began, .* now\. Restore it"):
            resume(stopped)
    finally:
        file.write_text(begun)


def test_other_weights_under_the_same_name_are_noticed(stopped: Path, tiny: dict[str, Any]) -> None:
    file = Path(tiny["weights"])
    held = file.read_bytes()
    save_file(random_backbone("test_resnet", image_size=32, seed=9).module.state_dict(), file)
    try:
        with pytest.raises(RunError, match="the weights file has changed"):
            resume(stopped)
        file.unlink()
        with pytest.raises(HeadstartError, match=re.escape(str(file))):
            resume(stopped)
    finally:
        file.write_bytes(held)


def test_a_run_of_an_earlier_version_that_wrote_no_conditions_is_refused(stopped: Path) -> None:
    file = stopped / "start.json"
    begun = file.read_text()
    file.write_text(json.dumps({name: own for name, own in json.loads(begun).items() if name != "conditions"}))
    try:
        with pytest.raises(RunError, match="unknown when the run began"):
            resume(stopped)
    finally:
        file.write_text(begun)


def test_a_run_is_resumed_with_the_options_that_it_began_with(stopped: Path) -> None:
    with pytest.raises(OptionError, match="epochs: a resumed run keeps its original options"):
        resume(stopped, epochs=20)


def test_a_run_finds_its_tables_columns_again(hard: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted(hard.rglob("*.png"))]
    table.write_text("\n".join(["Datei,Art", *rows]))

    def stop(event: Event) -> None:
        if event.kind == "engine":
            raise Stopped

    names = {"path_column": "Datei", "label_column": "Art"}
    with pytest.raises(Stopped):
        hs.train(open_table(table, **names), out=tmp_path / "run", listener=stop, **tiny)
    assert read_start(tmp_path / "run")[1].columns == names
    with pytest.raises(Stopped):
        resume(tmp_path / "run", listener=stop)
    assert open_like(tmp_path / "run", table).classes == ("first", "second")
    table.write_text("\n".join(["path,label", *rows]))
    assert open_like(tmp_path / "run", table).classes == ("first", "second")
    table.write_text("\n".join(["Datei,Sorte", *rows]))
    with pytest.raises(DataError, match="no column 'Art'"):
        open_like(tmp_path / "run", table)


def test_there_is_nothing_to_resume_where_no_run_is(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run to resume"):
        resume(tmp_path)


class Disk:
    """Counts what is written below a folder; from a certain write on the disk is full."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.writes, self.full_from = str(folder), 0, 10**9
        opened, replaced, made = builtins.open, os.replace, os.mkdir

        def open_it(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if set(mode) & set("wax+"):
                self.write(file)
            return opened(file, mode, *rest, **named)

        def replace_it(source: Any, target: Any, **named: Any) -> None:
            self.write(target)
            replaced(source, target, **named)

        def make_it(path: Any, *rest: Any, **named: Any) -> None:
            self.write(path)
            made(path, *rest, **named)

        patch.setattr(builtins, "open", open_it)
        patch.setattr(io, "open", open_it)
        patch.setattr(os, "replace", replace_it)
        patch.setattr(os, "mkdir", make_it)

    def write(self, file: Any) -> None:
        if not str(file).startswith(self.folder) or "now.json" in str(file):  # which is written when there is time
            return
        self.writes += 1
        if self.writes >= self.full_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_from(
    number: int, data: Path, folder: Path, choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> hs.Run:
    """The run that comes of a disk that is full from a certain write on, and has room again afterwards."""
    said = ""
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        disk.full_from = number
        try:
            return hs.train(data, out=folder, **choices)
        except HeadstartError as error:  # and no OSError
            said = str(error)
    assert str(folder) in said
    assert "Free some space" in said
    if f"headstart train --resume {folder}" in said:
        return resume(folder)
    assert not folder.exists()
    return hs.train(data, out=folder, **choices)


def counted(data: Path, folder: Path, choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[hs.Run, int]:
    """A run that nothing happens to, and how often it writes."""
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        return hs.train(data, out=folder, **choices), disk.writes


def test_a_full_disk_is_a_named_error_and_the_run_goes_on_afterwards(
    climbing: None, hard: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, writes = counted(hard, tmp_path / "whole", tiny, monkeypatch)
    run = full_from(writes - 4, hard, tmp_path / "late", tiny, monkeypatch)
    assert run.model_path.read_bytes() == expected.model_path.read_bytes()


def test_a_disk_that_is_full_from_the_beginning_leaves_no_folder(
    hard: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 4):  # the folder, the recipe, the start
        disk = Disk(tmp_path / "run", monkeypatch)
        disk.full_from = number
        with pytest.raises(RunError, match=r"run.*: cannot be written \(No space left.*Free some space"):
            hs.train(hard, out=tmp_path / "run", **tiny)
        assert not (tmp_path / "run").exists()
        monkeypatch.undo()


@pytest.mark.exhaustive
@pytest.mark.parametrize("more", [{}, {"unfreeze": "layer4", "epochs": 1, "views": 1}])
def test_so_it_is_whichever_write_the_disk_is_full_at(
    more: dict[str, Any],
    climbing: None,
    hard: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices = tiny | more
    expected, writes = counted(hard, tmp_path / "whole", choices, monkeypatch)
    for number in range(1, writes + 1):
        run = full_from(number, hard, tmp_path / str(number), choices, monkeypatch)
        assert run.model_path.read_bytes() == expected.model_path.read_bytes(), number
