"""Law 16: what is published names no folder of this machine and no user."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import onnx
import pytest
import torch
from commands import main
from hub import TOKEN, Hub, hub_on_this_machine
from huggingface_hub import constants
from onnx import TensorProto, helper, numpy_helper
from random_images import COLOURS, write_classes
from small_models import small_model

import headstart as hs
from headstart.backbone.weights import random_backbone
from headstart.errors import HubError
from headstart.exports.formats.onnx import write_onnx
from headstart.exports.graph import export_metadata
from headstart.reports.report_page import shown_path
from headstart.runs.folder import load_run, read_start
from headstart.training.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_networks")]

USER = "zacharias"
PRIVATE = ("start.json", "run.json", "log.jsonl", "*.csv")
"""Files of a run that may name folders of this machine. Whatever else a run writes may not, also files to come."""

AS_THE_TABLE = ("findings.json",)
"""Files that name images as a table does; one that holds absolute paths makes them private."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's home folder, with photographs and weights in it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("machine") / "home" / USER
        write_classes(folder / "photos", dict.fromkeys(COLOURS, 24))
        (folder / "photos" / "red" / "broken.png").write_bytes(b"no image")
        torch.save(random_backbone("test_resnet").module.state_dict(), folder / "w.pth")
        patch.setenv("HOME", str(folder))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def run(home: Path) -> hs.Run:
    weights = {"backbone": "test_resnet", "weights": str(home / "w.pth"), "image_size": 32}
    return hs.train(home / "photos", out=home / "run", device="cpu", val=0.3, **weights)


@pytest.fixture(scope="module")
def extended(home: Path, run: hs.Run) -> hs.Run:
    """Images outside the table's folder, a model that is extended, and a folder to remember by."""
    table = home.parent.parent / "tables" / "new.csv"
    table.parent.mkdir()
    new = write_classes(home / "new", {"yellow": 12, "white": 12}, first_seed=700)
    (new / "white" / "broken.png").write_bytes(b"no image")
    rows = [["path", "label"], *([str(path), path.parent.name] for path in sorted(new.glob("*/*.png")))]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    remember = write_classes(home / "remember", {"red": 8}, first_seed=800)
    return hs.train(
        table, out=home / "extended", extend=str(run.folder), rehearsal=str(remember), val=0.3, device="cpu"
    )


def named(content: bytes) -> list[str]:
    """What a file says of this machine."""
    found = [content[max(0, at - 60) : at + 60] for at in [content.find(USER.encode())] if at >= 0]
    return [own.decode(errors="replace") for own in found]


def is_private(name: str, patterns: tuple[str, ...] = PRIVATE) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("which", ["run", "extended"])
def test_every_file_of_a_run_that_is_not_private_names_no_user(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which).folder
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    assert {"model.safetensors", "README.md", "report.html", "recipe.json", "scores.json"} <= set(files)
    private = (*PRIVATE, *(AS_THE_TABLE if which == "extended" else ()))
    for name, file in files.items():
        assert is_private(name, private) or not named(file.read_bytes()), (name, named(file.read_bytes()))
    assert named((folder / "start.json").read_bytes())  # the search finds what there is


@pytest.mark.exhaustive
def test_every_file_of_a_fine_tuned_run_that_is_not_private_names_no_user(home: Path) -> None:
    weights = {"backbone": "test_resnet", "weights": "w.pth", "image_size": 32, "device": "cpu"}
    folder = hs.train("photos", out="tuned", unfreeze="layer4", epochs=1, val=0.3, **weights).folder
    files = [file for file in folder.rglob("*") if file.is_file() and not is_private(file.name)]
    assert (folder / "curves.svg").exists()
    assert any("checkpoints" in file.parts for file in files)
    assert {file.name: named(file.read_bytes()) for file in files} == {file.name: [] for file in files}


def test_the_recipe_names_files_and_the_start_their_places(home: Path, run: hs.Run, extended: hs.Run) -> None:
    recipe = json.loads((run.folder / "recipe.json").read_text())
    assert recipe["weights"] == "w.pth"
    assert hs.load(run.folder).recipe == Recipe.from_json(recipe)
    assert "w.pth" in (run.folder / "README.md").read_text()
    assert json.loads((extended.folder / "start.json").read_text())["paths"] == {
        "extend": str(run.folder),
        "rehearsal": str(home / "remember"),
    }
    assert load_run(run.folder).recipe.weights == str(home / "w.pth")  # to train again as it was
    (run.folder / "run.json").rename(run.folder / "aside.json")
    try:
        assert read_start(run.folder)[0].weights == str(home / "w.pth")  # to resume
    finally:
        (run.folder / "aside.json").rename(run.folder / "run.json")


def test_a_recipe_to_publish_has_the_names_alone() -> None:
    for path, name in {"/home/zoe/w.pth": "w.pth", "C:\\Users\\zoe\\w.pth": "w.pth", "runs/x/": "x"}.items():
        assert Recipe(weights=path).without_paths().weights == name
    for own in (Recipe(extend="hf://me/flowers@v1"), Recipe(extend="pretrained"), Recipe()):
        assert own.without_paths() == own
        assert own.paths == {}


def test_a_report_shows_no_path_through_a_home_folder(home: Path) -> None:
    assert shown_path(str(home / "photos" / "red" / "1.png"), str(home / "photos")) == "red/1.png"
    assert shown_path(str(home / "old" / "1.png"), str(home / "photos")) == "../old/1.png"
    assert shown_path(str(home / "old" / "1.png"), "/data/photos") == ".../1.png"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_on_this_machine() as held:
        monkeypatch.setenv("HF_ENDPOINT", held.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield held


def test_what_is_pushed_names_no_user(run: hs.Run, hub: Hub) -> None:
    hs.push(run.folder, "me/own", with_report=True)
    files = hub.repositories["me/own"]
    ours = {"README.md", "headstart.safetensors", "recipe.json", "scores.json", "report.html"}
    assert set(files) == ours | {"config.json", "model.safetensors", "headstart_timm.json"}
    assert {name: named(content) for name, content in files.items()} == {name: [] for name in files}


def test_files_of_an_earlier_version_are_cleaned_or_refused(
    home: Path, run: hs.Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe = hs.load(run.folder), (run.folder / "recipe.json").read_text()
    before, report = run.model_path.read_bytes(), run.report_path.read_bytes()
    try:
        model = model.replace(recipe=Recipe(weights=str(home / "w.pth")))
        with monkeypatch.context() as patch:
            patch.setattr(Recipe, "without_paths", lambda self: self)  # as it was
            model.save(run.model_path)
        (run.folder / "recipe.json").write_text(json.dumps({"weights": str(home / "w.pth")}))
        assert named(run.model_path.read_bytes())
        hs.push(run.folder, "me/old")
        assert not any(named(content) for content in hub.repositories["me/old"].values())
        run.report_path.write_bytes(report + f"<td>{home}/w.pth</td>".encode())
        with pytest.raises(HubError, match=r"report\.html: contains a path of this machine"):
            hs.push(run.folder, "me/never", with_report=True)
        assert "me/never" not in hub.repositories
    finally:
        run.model_path.write_bytes(before)
        run.report_path.write_bytes(report)
        (run.folder / "recipe.json").write_text(recipe)


def test_an_onnx_file_loses_every_trace_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(torch.ones(3).numpy(), "w")
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y", "m")]
    graph = helper.make_graph(nodes, "own", values[:1], values[1:2], [weights], value_info=values[2:])
    proto = helper.make_model(graph)
    parts = [proto, proto.graph, *proto.graph.node, *proto.graph.input]
    for part in [*parts, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]:
        part.doc_string = f"/home/{USER}/train.py, line 3"
        entry = part.metadata_props.add()
        entry.key, entry.value = "trace", f"/home/{USER}/train.py"
    write_onnx(proto, export_metadata(small_model(), written_with={}), tmp_path / "m.onnx")
    assert not named((tmp_path / "m.onnx").read_bytes())
    assert onnx.load(tmp_path / "m.onnx").metadata_props[0].key == "headstart"


def test_the_finished_run_of_another_user_is_evaluated_with_a_warning(
    run: hs.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uses = (run.folder / "test_uses.jsonl").read_bytes()
    real = open

    def denied(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
        if str(file).startswith(str(run.folder)) and set(mode) & set("wax+"):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, mode, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", denied)
    status, out, err = main("evaluate", run.folder, capsys=capsys)
    monkeypatch.undo()
    assert status == 0, err
    assert "test:" in out
    assert err.count("test_uses.jsonl: cannot be written") == 1
    assert "Warning:" in err
    assert "Traceback" not in err
    assert (run.folder / "test_uses.jsonl").read_bytes() == uses
