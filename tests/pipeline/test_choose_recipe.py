"""Training within a time: backbone and effort are chosen and written down, and the plan gives the same model."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from random_images import write_classes
from recorded_progress import RecordedProgress

import headstart as hs
from headstart.backbone.weights import fingerprint
from headstart.distributed.rank_group import THIS_PROCESS
from headstart.errors import OptionError, RunError, WeightsError
from headstart.pipeline import choose_recipe as module
from headstart.pipeline.choose_depth import DEEP, SHALLOW, Preferred
from headstart.runs.events import Event
from headstart.selection.candidates import Candidate, find_candidates
from headstart.selection.results import Near, Selection
from headstart.selection.search import UNKNOWN_SPEED
from headstart.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("d") / "colours", {"blue": 30, "green": 30, "red": 30})


@pytest.fixture(scope="module")
def chosen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[hs.Run, list[str]]:
    progress = RecordedProgress()
    out = tmp_path_factory.mktemp("r") / "run"
    with pytest.MonkeyPatch.context() as patch:  # a plan of a single network, whose weights may lie in a file
        patch.setattr("headstart.selection.search._combinations", lambda *_: [])
        return hs.train(data, out=out, minutes=5, device="cpu", progress=progress), progress.said


@pytest.mark.slow
def test_the_decisions_are_said_and_written(chosen: tuple[hs.Run, list[str]]) -> None:
    run, said = chosen
    assert any(line.startswith("Plan: 5 minutes. 3 backbones are compared") for line in said)
    plan = json.loads((run.folder / "plan.json").read_text())
    selection = json.loads((run.folder / "selection.json").read_text())
    assert plan["recipe"]["backbone"] == selection["chosen"] == run.recipe.backbone
    assert plan["recipe"]["effort"] == run.recipe.effort
    assert len(selection["candidates"]) == 6  # three backbones; the best one with larger images and two other fits
    assert selection["candidates"][0]["decision"].startswith("chosen")
    assert "- Choice of the backbone: 6 compared by cross-validation" in (run.folder / "README.md").read_text()
    page = run.report_path.read_text()
    assert "Choice of the backbone" in page
    assert all(row["architecture"] in page for row in selection["candidates"])


@pytest.mark.slow
def test_the_plan_gives_the_same_weights_without_a_clock(
    chosen: tuple[hs.Run, list[str]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = chosen
    monkeypatch.setattr(module, "search", None)
    again = hs.train(data, out=tmp_path / "again", plan=run.folder, device="cpu")
    one, other = hs.load(run.folder), hs.load(again.folder)
    assert fingerprint(one.net.state()) == fingerprint(other.net.state())
    assert fingerprint(one.head.state_dict()) == fingerprint(other.head.state_dict())


@pytest.mark.slow
def test_a_plan_names_neither_the_file_of_the_weights_nor_an_accepted_licence(
    chosen: tuple[hs.Run, list[str]], data: Path, tmp_path: Path
) -> None:
    """Whoever carries a plan out gives them; the fingerprint says whether the weights are the same."""
    recipe = json.loads((chosen[0].folder / "plan.json").read_text())["recipe"]
    assert not {"weights", "accept_license"} & recipe.keys()
    options = {"plan": chosen[0].folder, "device": "cpu", "out": tmp_path / "run"}
    with pytest.raises(WeightsError, match="no such weight file"):
        hs.train(data, weights=tmp_path / "none.safetensors", **options)
    again = hs.train(data, accept_license=True, **options)
    assert again.recipe.accept_license


@pytest.mark.slow
def test_a_plan_is_refused_where_the_weights_are_others(
    chosen: tuple[hs.Run, list[str]], data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    document = json.loads((chosen[0].folder / "plan.json").read_text())
    file.write_text(json.dumps(document | {"fingerprint": "0" * 64}))
    with pytest.raises(WeightsError, match="not those that the plan was made with"):
        hs.train(data, out=tmp_path / "run", plan=file, device="cpu")


@pytest.mark.parametrize(("seconds", "effort"), [(1e6, "quick"), (0.0, "probe")])
@pytest.mark.slow
def test_the_time_left_decides_the_effort(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, effort: str
) -> None:
    real = module._deepest_in_time
    ends = time.monotonic() + seconds

    def deepest(job: Any, recipe: Recipe, inspection: Any, *_: Any) -> Any:
        return real(job, recipe, inspection, SHALLOW, ends, 0.0)

    monkeypatch.setattr(module, "_deepest_in_time", deepest)
    folder = tmp_path / "run"
    folder.mkdir()
    job = module.Job(hs.open_data(data), Recipe(), "cpu", None, RecordedProgress())
    recipe = module.choose_recipe(job, find_candidates("offline"), 1, folder)
    assert (recipe.effort, recipe.views) == (effort, SHALLOW[-1].views if effort == "quick" else None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minutes": 0}, "expected a number above 0"),
        ({"minutes": 1e9}, "expected a number above 0 and below 1,000,000"),
        ({"minutes": True}, "expected a number above 0"),
        ({"minutes": "ten"}, "expected a number above 0"),
        ({"minutes": 1, "max_cost": 0.5}, "expected a number of at least 1"),
        ({"minutes": 1, "effort": "quick"}, "leave effort out"),
        ({"minutes": 1, "effort": "probe"}, "leave effort out"),
        ({"minutes": 1, "backbone": "resnet18"}, "leave backbone out"),
        ({"minutes": 1, "epochs": 3}, "leave epochs out"),
        ({"minutes": 1, "tune": "lora"}, "leave tune out"),
        ({"minutes": 1, "candidates": "nothing_like_it"}, "no backbone named"),
        ({"minutes": 1, "plan": "x"}, "leave minutes out"),
        ({"seed": 1, "plan": "x"}, "leave seed out"),
        ({"effort": "probe", "candidates": "cached"}, "candidates: has no effect, because effort was given"),
        ({"backbone": "resnet18", "max_cost": 3}, "max_cost: has no effect, because backbone was given"),
    ],
)
def test_what_contradicts_the_choice_is_refused(
    data: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        hs.train(data, out=tmp_path / "run", device="cpu", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such plan"),
        ("{", "not a plan"),
        ("[]", "not a plan"),
        ('{"version": 9}', "newer Headstart"),
        ('{"version": 1, "recipe": {"seed": "x"}, "fingerprint": ""}', "not a plan"),
        ("[]", "expected a JSON object"),
        ('{"version": "1", "recipe": {}, "fingerprint": ""}', "version: wrong type"),
        ('{"version": 1, "recipe": [], "fingerprint": ""}', "recipe: wrong type"),
        ('{"version": 1, "recipe": {}}', "fingerprint: missing"),
        ('{"version": 1, "recipe": {}, "fingerprint": null}', "fingerprint: wrong type"),
        ("[" * 100_000, "not a plan"),
        (
            '{"version": 1, "recipe": {"accept_license": true}, "fingerprint": ""}',
            "accept_license is no part of a plan",
        ),
        (
            '{"version": 1, "recipe": {"epoch": 3}, "fingerprint": ""}',
            "no option is called 'epoch'.*Did you mean epochs",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_named(data: Path, tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RunError, match=words):
        hs.train(data, out=tmp_path / "run", plan=file, device="cpu")


@pytest.mark.parametrize(
    ("seconds", "overrun", "effort", "words"),
    [
        (20.0, 0.0, "quick", "Time left: 20 s; tf_efficientnet_lite0 with effort quick, 22 epochs and 6 views needs"),
        (9.0, 3.0, "quick", "Time left: 9 s; tf_efficientnet_lite0 with effort quick"),  # not 12 s
        (9.0, 0.0, "probe", "Time left: 9 s, too little"),
        (
            -9.0,
            0.0,
            "probe",
            "Time left: 0 s, too little to fine-tune tf_efficientnet_lite0, about 11 s. The run takes longer",
        ),
    ],
)
def test_the_time_left_and_the_epochs_are_said_as_they_are(
    monkeypatch: pytest.MonkeyPatch, seconds: float, overrun: float, effort: str, words: str
) -> None:
    progress = RecordedProgress()
    job = module.Job(None, Recipe(), "cpu", None, progress)  # type: ignore[arg-type]
    loaded = SimpleNamespace(backbone=SimpleNamespace(fingerprint=""))
    monkeypatch.setattr(module, "load", lambda _job: loaded)
    monkeypatch.setattr(module, "inspect_images", lambda *_: SimpleNamespace(keys={"train": [b""] * 245}))
    monkeypatch.setattr(module, "measure", lambda *_: None)
    planned = SimpleNamespace(rungs=[1], steps=[SimpleNamespace(seconds=11.0)])
    monkeypatch.setattr(module, "plan", lambda *_: planned)
    recipe = replace(Recipe(), backbone="tf_efficientnet_lite0")
    ends = time.monotonic() + seconds
    found, _ = module._deepest_in_time(job, recipe, None, SHALLOW[-1:], ends, overrun)  # type: ignore[arg-type]
    assert found.effort == effort
    assert progress.said[-1].startswith(words)


@pytest.mark.slow
def test_ctrl_c_after_the_choice_keeps_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_given: object, **_named: object) -> None:
        raise KeyboardInterrupt

    progress, folder = RecordedProgress(), tmp_path / "run"
    for where, is_kept in (("pipeline.choose_recipe.search", False), ("pipeline.train.featurise", True)):
        with monkeypatch.context() as patch:
            patch.setattr(f"headstart.{where}", stop)
            with pytest.raises(KeyboardInterrupt):
                hs.train(data, out=folder, minutes=1, device="cpu", progress=progress)
        assert folder.exists() == is_kept
    assert progress.said[-1] == f"To resume this run: headstart train --resume {folder}"
    planned = json.loads((folder / "plan.json").read_text())["recipe"]
    run = hs.resume(folder)
    assert (run.recipe.backbone, run.recipe.effort) == (planned["backbone"], planned["effort"])


@pytest.mark.slow
def test_candidates_beside_a_plan_are_refused(chosen: tuple[hs.Run, list[str]], data: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="candidates: has no effect, because plan was given"):
        hs.train(data, out=tmp_path / "run", plan=chosen[0].folder, candidates="cached")


def test_a_single_candidate_is_announced_as_one(data: Path) -> None:
    assert "1 backbone is evaluated by cross-validation" in module._intention(
        find_candidates("tf_efficientnet_lite0"), 1
    )


def test_an_unusable_file_among_the_candidates_is_an_error_before_anything_is_compared(
    data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(b"damaged" * 100)
    progress = RecordedProgress()
    with pytest.raises(WeightsError, match="damaged"):
        hs.train(data, out=tmp_path / "run", minutes=1, candidates=f"offline,resnet18={file}", progress=progress)
    assert not [line for line in progress.said if line.startswith("Backbones on")]


@pytest.mark.parametrize(
    ("options", "is_chosen"),
    [
        ({}, True),
        ({"seed": 3}, True),
        ({"effort": "probe"}, False),
        ({"backbone": "resnet18"}, False),
        ({"lr": 1e-3}, False),
    ],
)
def test_a_run_chooses_by_default_unless_an_option_decides_it(
    options: dict[str, Any], is_chosen: bool, default_minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEFAULT_MINUTES", default_minutes)
    assert module.minutes_for(Recipe(**options), None) == (default_minutes if is_chosen else None)


def test_training_uses_the_default_time_and_progress_says_what_is_left_of_it(
    data: Path, tmp_path: Path, default_minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(*arguments: Any, **_options: Any) -> Recipe:
        with arguments[0].progress.task("Reading images", 1):
            raise RunError(f"chosen within {arguments[2]} minutes")

    left: list[float] = []

    def listener(event: Event) -> None:
        if event.kind == "progress":
            left.append(event["left"])

    monkeypatch.setattr(module, "DEFAULT_MINUTES", default_minutes)
    monkeypatch.setattr("headstart.pipeline.train.choose_recipe", chosen)
    with pytest.raises(RunError, match=f"chosen within {default_minutes} minutes"):
        hs.train(data, out=tmp_path / "run", device="cpu", listener=listener)
    assert left
    assert all(0 < seconds <= 60 * default_minutes for seconds in left)


@pytest.mark.slow
def test_backbones_are_compared_without_training_further(data: Path, tmp_path: Path) -> None:
    found = hs.compare(data, out=tmp_path / "c", only=["backbones"], device="cpu")
    assert found.name == "cross-validation"
    assert len(found.rows) == 3
    assert sorted(p.name for p in found.folder.iterdir()) == [
        "comparison.json",
        "comparison.md",
        "comparison.svg",
        "selection.json",
    ]
    with pytest.raises(OptionError, match="Compare backbones alone"):
        hs.compare(data, out=tmp_path / "d", only=["backbones", "probes"], device="cpu")


@pytest.mark.parametrize(
    ("planned", "chosen"),
    [
        ({"small": "quick", "large": "quick"}, "large"),  # the small one was expected to go deeper, and does not
        ({"small": "deep", "large": "quick"}, "small"),
        ({"small": "probe", "large": "quick"}, "large"),
        ({"small": "probe", "large": "probe"}, "small"),
    ],
)
def test_what_the_plan_of_the_steps_allows_decides_and_not_the_estimate_before_it(
    planned: dict[str, str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = [
        Candidate(name, None, 32, weights, 0.1, "mit", "for the test", "package", "a package")
        for name, weights in (("small", 1_000), ("large", 2_000))
    ]
    selection = Selection((), tuple(Near(one, UNKNOWN_SPEED) for one in candidates))
    expected = [Preferred(0, "there is time", "deep"), Preferred(1, "it has more weights", "quick")]
    monkeypatch.setattr(module, "inspected_images", lambda inspection: inspection)
    monkeypatch.setattr(module, "depths_for", lambda _selection: DEEP)
    monkeypatch.setattr(module, "by_preference", lambda *_: expected)
    monkeypatch.setattr(Selection, "with_chosen", lambda self, *_: self)

    def plan(_job: Any, recipe: Recipe, *_: Any) -> tuple[Recipe, str]:
        return replace(recipe, effort=planned[recipe.backbone]), "fingerprint"

    monkeypatch.setattr(module, "_deepest_in_time", plan)
    job = SimpleNamespace(recipe=Recipe(), ranks=THIS_PROCESS, device="cpu")
    _, recipe, _ = module._chosen(job, selection, None, time.monotonic() + 100, 7.0)  # type: ignore[arg-type]
    assert (recipe.backbone, recipe.effort) == (chosen, planned[chosen])
