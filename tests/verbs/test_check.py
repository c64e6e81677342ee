from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import main
from PIL import Image, ImageDraw
from random_images import COLOURS, random_image, write_12_bits, write_classes
from recorded_progress import RecordedProgress

import headstart as hs
from headstart.data import open_table
from headstart.data.inspection import images_to_exclude, inspect, summary_lines
from headstart.data.label_cells import SEPARATOR
from headstart.data.preprocessing import Preprocessing
from headstart.verbs.check import check, write_clean


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and val with three classes, a leak, a label error, an unreadable file and an outlier."""
    root = tmp_path_factory.mktemp("faulty") / "d"
    write_classes(root / "train", dict.fromkeys(COLOURS, 24))
    write_classes(root / "val", dict.fromkeys(COLOURS, 8), first_seed=500)
    shutil.copy(root / "val" / "red" / "3.png", root / "train" / "red" / "leak.png")
    random_image(900, COLOURS["red"]).save(root / "train" / "blue" / "mislabelled.png")
    (root / "train" / "green" / "no.jpg").write_text("no image")
    page = Image.new("RGB", (48, 40), "white")
    ImageDraw.Draw(page).multiline_text((2, 2), "Terms\nand so\non", fill="black")
    page.save(root / "train" / "green" / "page.png")
    return root


@pytest.mark.slow
def test_all_faults_are_found_most_severe_first(faulty: Path) -> None:
    look = check(faulty, image_size=128)
    found = {finding.kind: finding for finding in look.findings}
    assert found["unreadable"].images == (("train/green/no.jpg",),)
    assert found["leak"].images == (("train/red/leak.png", "val/red/3.png"),)
    wrong = found["wrong-label"]
    assert wrong.images[0] == ("train/blue/mislabelled.png",)
    assert "labelled blue" in wrong.items[0]
    assert "more likely red" in wrong.items[0]
    doubted = {path for kind in ("outlier", "wrong-label") for (path,) in found[kind].images if kind in found}
    assert "train/green/page.png" in doubted
    ranks = [("serious", "warning", "note").index(f.severity) for f in look.findings]
    assert ranks == sorted(ranks)
    assert all(len(f.images) in (0, len(f.items)) for f in look.findings)


@pytest.mark.exhaustive
def test_check_and_train_share_cached_features(faulty: Path, tmp_path: Path) -> None:
    check(faulty, image_size=128)
    progress = RecordedProgress()

    run = hs.train(faulty, out=tmp_path / "run", image_size=128, progress=progress)
    assert sum("are in the cache; the backbone does not run" in line for line in progress.said) == 2
    kinds = {finding.kind for finding in run.findings}
    assert {"unreadable", "leak", "wrong-label"} <= kinds
    assert {f["kind"] for f in json.loads((run.folder / "findings.json").read_text())} == kinds
    assert hs.load_run(run.folder).findings == run.findings
    told = [line for line in progress.said if line.startswith(("Serious", "Warning", "And"))]
    assert 2 <= len(told) <= 3
    assert any("labels are probably wrong" in line for line in told)


@pytest.mark.slow
def test_a_clean_table_excludes_findings_and_can_be_trained_on(faulty: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()}
    look = check(faulty, image_size=128)
    out = write_clean(look, tmp_path / "clean.csv")
    paths = look.dataset.paths
    gone = {paths[i]: kind for i, kind in out.items()}
    assert gone["train/red/leak.png"] == "leak"  # the val image stays, so that scores remain comparable
    assert gone["train/green/no.jpg"] == "unreadable"
    assert gone["train/blue/mislabelled.png"] == "wrong-label"
    assert "val/red/3.png" not in gone
    again = open_table(tmp_path / "clean.csv")
    assert len(again) == len(look.dataset) - len(out)
    assert again.splits is not None
    assert again.splits.count("val") == look.dataset.splits.count("val") - sum(p.startswith("val") for p in gone)
    left = {finding.kind for finding in inspect(again).findings if finding.severity == "serious"}
    assert not left
    assert before == {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()}


def test_a_clean_table_next_to_its_images_has_relative_paths_labels_and_groups(tmp_path: Path) -> None:
    rows = [["path", "labels", "group"]]
    for i in range(12):
        random_image(i).save(tmp_path / f"{i}.png")
        rows.append([f"{i}.png", f"a{SEPARATOR}b" if i % 2 else "a", f"g{i % 3}"])
    shutil.copy(tmp_path / "4.png", tmp_path / "copy.png")
    rows.append(["copy.png", "a", "g1"])
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    look = check(tmp_path / "t.csv", files_only=True)
    write_clean(look, tmp_path / "clean.csv")
    with open(tmp_path / "clean.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["path"] for row in written} == {f"{i}.png" for i in range(12)}
    assert {row["labels"] for row in written} == {"a", f"a{SEPARATOR}b"}
    assert {row["group"] for row in written} == {"g0", "g1", "g2"}


def test_conflicting_labels_are_all_excluded_and_duplicates_except_the_first(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "d", {"blue": 12, "red": 12})
    shutil.copy(root / "blue" / "1.png", root / "red" / "twice.png")
    shutil.copy(root / "blue" / "2.png", root / "blue" / "copy.png")
    look = inspect(root)
    gone = {look.dataset.paths[i]: kind for i, kind in images_to_exclude(look).items()}
    assert gone == {
        "blue/1.png": "conflicting-labels",
        "red/twice.png": "conflicting-labels",
        "blue/copy.png": "duplicate",
    }


def test_data_that_cannot_be_trained_on_is_still_checked(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "d", {"blue": 6})
    look = check(root, image_size=128)
    assert [f.kind for f in look.findings if f.severity == "serious"] == ["not-trainable"]
    assert not [f for f in check(root, files_only=True).findings if f.kind == "not-trainable"]


@pytest.mark.slow
def test_a_run_prints_a_bounded_number_of_findings(faulty: Path) -> None:
    findings = check(faulty, image_size=128).findings
    many = [f for f in findings if f.severity != "note"] * 3
    lines = summary_lines(many)
    assert len(lines) == 2
    assert "more findings" in lines[1]
    assert len(summary_lines([f for f in findings if f.severity == "note"])) == 0


@pytest.mark.slow
def test_the_command_ranks_writes_and_is_strict(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = main(
        "check", faulty, "--strict", "--image-size", 128, "--write", tmp_path / "clean.csv", capsys=capsys
    )
    assert code == 1
    assert out.index("serious  ") < out.index("warning  ")
    assert "excluded." in out
    assert (tmp_path / "clean.csv").is_file()
    code, out, _ = main("check", faulty, "--json", "--files-only", capsys=capsys)
    document = json.loads(out)
    assert code == 0
    assert "wrong-label" not in [finding["kind"] for finding in document["findings"]]
    leak = next(f for f in document["findings"] if f["kind"] == "leak")
    assert leak["images"] == [["train/red/leak.png", "val/red/3.png"]]
    code, _, err = main("check", faulty, "--write", tmp_path / "clean.txt", capsys=capsys)
    assert (code, "clean.txt" in err) == (1, True)


def test_a_folder_of_findings_shows_their_images(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = main("check", faulty, "--files-only", "--out", tmp_path / "found", capsys=capsys)
    assert code == 0
    assert "check.html" in out
    written = json.loads((tmp_path / "found" / "findings.json").read_text())
    assert {f["kind"] for f in written} >= {"leak", "unreadable"}
    page = (tmp_path / "found" / "check.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "train/red/leak.png = val/red/3.png" in page
    assert "http" not in page.replace("http-equiv", "")
    code, _, err = main("check", faulty, "--files-only", "--out", tmp_path / "found", capsys=capsys)
    assert (code, "nothing is overwritten" in err) == (1, True)


def test_unused_bits_are_reported_with_a_remedy(tmp_path: Path) -> None:
    look = inspect(write_12_bits(tmp_path / "data", {"a": 15, "b": 15}), cache=tmp_path / "cache")
    found = {finding.kind: finding for finding in look.findings}
    assert found["bit-depth"].severity == "warning"
    assert "30 image(s) have 16 bits per channel and use 12 of them" in found["bit-depth"].message
    assert "--value-range data" in found["bit-depth"].message
    assert not {"dark", "blank", "blurred"} & set(found)
    assert images_to_exclude(look) == {}
    scaled = Preprocessing(height=32, width=32, value_range=(0.0, 0.0625))
    look = inspect(tmp_path / "data", cache=tmp_path / "cache", preprocessing=scaled)
    assert "bit-depth" not in {finding.kind for finding in look.findings}
    assert look.scanned.facts["tones"][:, 2].min() > 60
    full = np.full((40, 48), 65535, np.uint16)
    Image.fromarray(full).save(tmp_path / "data" / "a" / "white.png")
    assert "bit-depth" not in {f.kind for f in inspect(tmp_path / "data", cache=tmp_path / "cache").findings}
