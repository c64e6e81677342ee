"""Runs on archives: every verb works without the images as files, and says where they were if they are gone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import main
from random_images import write_classes
from small_architectures import small_architectures
from source_files import images_of, write_parquet, write_tar, write_zip

import headstart as hs
from headstart.errors import DataError, RunError
from headstart.files import read_rows
from headstart.pipeline.resume import resume
from headstart.runs import Event
from headstart.serve.batching import InferenceService
from headstart.serve.corrections import Corrections
from headstart.serve.page import PageBackend

pytestmark = pytest.mark.slow

SETTINGS = {"device": "cpu", "image_size": 32, "unfreeze": "blocks.6", "epochs": 2}

WRITERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "tar": lambda file, images: write_tar(file, images.items()),
    "zip": write_zip,
    "parquet": write_parquet,
}


class Stopped(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with small_architectures():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return images_of(write_classes(tmp_path_factory.mktemp("images") / "d", {"blue": 40, "red": 40}))


@pytest.fixture(scope="module")
def local(images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    """A run on the same images as files."""
    place = tmp_path_factory.mktemp("local")
    for name, data in images.items():
        (place / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "d" / name).write_bytes(data)
    return hs.train(place / "d", out=place / "run", cache=place / "cache", **SETTINGS)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_every_verb_works_with_a_run_on_an_archive(
    kind: str, images: dict[str, bytes], local: hs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = WRITERS[kind](tmp_path / f"d.{kind}", images)
    run = _stopped_and_resumed(source, tmp_path)
    assert run.results == local.results
    again = {part.scores.name: part.scores.correct for part in hs.evaluate(run.folder, device="cpu")}
    assert again == {name: run.results[name].correct for name in ("val", "test")}
    whole = hs.evaluate(run.folder, source, device="cpu")[0]
    assert whole.scores.count == 80
    assert {prediction.error for prediction in hs.load(run.folder).predict(source, device="cpu")} == {None}
    if kind == "tar":  # the exporter takes longest
        assert hs.export(run.folder, "torch", device="cpu").faults == ()
    options = ("--only", "probes", "--image-size", 32, "--out", tmp_path / "compared", "--json")
    status, out, err = main("compare", source, *options, capsys=capsys)
    assert status == 0, err
    assert json.loads(out)["rows"]
    retrained = hs.retrain(run.folder, _corrected(run, images, tmp_path), device="cpu", out=tmp_path / "again")
    corrected = [row["path"] for row in read_rows(retrained.run.folder / "split.csv") if row["label"] == "red"]
    assert sum(path.startswith(f"{source}::") for path in corrected) == 41


def _stopped_and_resumed(source: Path, place: Path) -> hs.Run:
    def stop(event: Event) -> None:
        if event.kind == "epoch":
            raise Stopped

    with pytest.raises(Stopped):
        hs.train(source, out=place / "run", cache=place / "cache", listener=stop, **SETTINGS)
    return resume(place / "run", cache=place / "cache")


def _corrected(run: hs.Run, images: dict[str, bytes], place: Path) -> Path:
    """Corrects one image on the web page of the run, whose similar images and heat map are shown."""
    corrections = Corrections(place / "corrections")
    page = PageBackend(InferenceService(hs.load(run.folder), run=run.folder, device="cpu"), corrections)
    pixels = page.pixels(images["blue/0.png"])
    shown = page.nearest(pixels)["nearest"]
    assert [near["image"][:23] for near in shown] == ["data:image/jpeg;base64,"] * 3
    assert page.explain("blue", pixels).startswith(b"\xff\xd8")
    page.keep(images["blue/0.png"], "red")
    return corrections.folder


@pytest.fixture
def gone(images: dict[str, bytes], tmp_path: Path) -> tuple[Path, hs.Run]:
    """The former place of a tar file, and a run on it."""
    source = write_tar(tmp_path / "d.tar", images.items())
    run = hs.train(source, out=tmp_path / "run", cache=tmp_path / "cache", device="cpu", image_size=32, effort="probe")
    source.unlink()
    return source, run


def test_an_archive_that_is_gone_is_named_with_a_remedy(
    gone: tuple[Path, hs.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run = gone
    status, _, err = main("report", run.folder, "--out", tmp_path / "r.html", capsys=capsys)
    assert status == 0
    assert f"can no longer be read and are missing in the report. The first: {source}::" in err
    assert "Put them back where they were" in err
    with pytest.raises(DataError, match=rf"The first: {source}::.* no such file.*Put them back .*headstart evaluate"):
        hs.evaluate(run.folder, device="cpu")
    with pytest.raises(DataError, match=rf"{source}::.*no longer exists.*Give other images"):
        hs.export(run.folder, "torch", device="cpu")
    (run.folder / "run.json").unlink()
    with pytest.raises(RunError, match=rf"cannot be opened: {source}: no such.*Put them back"):
        resume(run.folder, cache=tmp_path / "cache")


def test_an_archive_that_was_written_again_with_other_images_is_noticed(
    images: dict[str, bytes], tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if event.kind == "engine":
            raise Stopped

    source, settings = tmp_path / "d.tar", {"device": "cpu", "image_size": 32, "cache": tmp_path / "cache"}
    write_tar(source, images.items())
    with pytest.raises(Stopped):
        hs.train(source, out=tmp_path / "run", effort="probe", listener=stop, **settings)
    write_tar(source, list(images.items())[1:])
    with pytest.raises(RunError, match="have changed since this run began"):
        resume(tmp_path / "run", cache=tmp_path / "cache")


def test_a_run_on_shards_is_fine_tuned_scored_again_and_reported(images: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    even = {name: data for number, (name, data) in enumerate(images.items()) if number % 2}
    write_tar(tmp_path / "shards" / "a-0.tar", even.items())
    write_parquet(tmp_path / "shards" / "a-1.parquet", {n: d for n, d in images.items() if n not in even})
    pattern = f"{tmp_path}/shards/a-*"
    settings = {"cache": tmp_path / "cache", "device": "cpu", "image_size": 32, "unfreeze": "blocks.6", "epochs": 1}
    run = hs.train(pattern, out=tmp_path / "run", **settings)
    again = {part.scores.name: part.scores.correct for part in hs.evaluate(run.folder, device="cpu")}
    page = hs.report(run.folder, tmp_path / "report.html").read_text()
    assert again == {name: run.results[name].correct for name in ("val", "test")}
    assert json.loads((run.folder / "start.json").read_text())["data"] == pattern
    with open(run.folder / "split.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"].partition("::")[0] for row in rows} == {
        f"{tmp_path}/shards/a-{i}" for i in ("0.tar", "1.parquet")
    }
    assert hs.open_data(run.folder / "split.csv").label_names().count("red") == 40
    assert "a-0.tar::" in page
    assert str(tmp_path) not in page
