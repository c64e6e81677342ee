"""Report of a run: every number follows from the predictions, and the page is self-contained."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import opened
from commands import main
from random_images import COLOURS, mislabel, write_classes

import headstart as hs
from headstart.reports.image_map import read_map
from headstart.runs.log import read_log
from headstart.trust.calibration import cross_fitted_probabilities

FIGURE = re.compile(r'<(\w+)[^>]* data-figure="([^"]*)"[^>]*>(.*?)</\1>', re.DOTALL)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hs.Run:
    """Three classes with some label errors, so that there are mistakes; val and test; two rungs."""
    folder = tmp_path_factory.mktemp("report")
    data = mislabel(write_classes(folder / "d", dict.fromkeys(COLOURS, 44)), "blue", "red", 30)
    return hs.train(
        data, out=folder / "run", image_size=64, effort="quick", unfreeze="blocks.6", epochs=1, views=1, val=0.45
    )


@pytest.fixture(scope="module")
def rows(run: hs.Run) -> list[dict[str, str]]:
    with open(run.folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def figures(run: hs.Run) -> dict[str, str]:
    found = FIGURE.findall(run.report_path.read_text())
    return {html.unescape(name): html.unescape(re.sub("<[^>]*>", "", text)) for _, name, text in found}


def test_every_figure_is_recomputed_from_the_predictions(run: hs.Run, rows: list[dict[str, str]]) -> None:
    shown = figures(run)
    expected = {}
    for split in ("val", "test"):
        own = [row for row in rows if row["split"] == split]
        right, given = ([row[name] for row in own] for name in ("label", "predicted"))
        chances = np.array([[float(row[f"p:{name}"]) for name in COLOURS] for row in own])
        scores = []
        for name in COLOURS:
            both = sum(r == g == name for r, g in zip(right, given, strict=True))
            precision, recall = both / max(1, given.count(name)), both / max(1, right.count(name))
            f1 = 2 * precision * recall / max(1e-12, precision + recall)
            scores.append(f1)
            expected |= {
                f"{split}|precision|{name}": f"{100 * precision:.1f} %",
                f"{split}|recall|{name}": f"{100 * recall:.1f} %",
                f"{split}|f1|{name}": f"{100 * f1:.1f} %",
                f"{split}|support|{name}": str(right.count(name)),
            }
            for other in COLOURS:
                if count := sum((r, g) == (name, other) for r, g in zip(right, given, strict=True)):
                    expected[f"{split}|confusion|{name}|{other}"] = str(count)
        places = [list(COLOURS).index(name) for name in right]
        mine = chances[np.arange(len(own)), places]
        wrong = sorted((r for r in own if r["label"] != r["predicted"]), key=lambda r: -float(r["probability"]))
        expected |= {
            f"{split}|macro-f1": f"{np.mean(scores):.3f}",
            f"{split}|log-loss": f"{-np.log(mine).mean():.3f}",
            f"{split}|mistakes": str(len(wrong)),
            f"kept|{split}": str(sum(float(row["outlier"]) <= 0.95 for row in own)),
        }
        assert wrong, "there must be something to show"
        for row in wrong[:24]:
            sure, left = float(row["probability"]), float(row[f"p:{row['label']}"])
            name = "/".join(Path(row["path"]).parts[-2:])
            expected[f"{split}|mistake|{name}"] = f"{100 * sure:.1f} % against {100 * left:.1f} %"
        correct = len(own) - len(wrong)
        assert (
            f"{split} accuracy {100 * correct / len(own):.1f} % ({correct}/{len(own)}), 95 % CI "
            in run.report_path.read_text()
        )
        if split == "test":
            expected["calibration|test"] = f"{100 * error(chances, places):.1f}"
        else:
            temperature = hs.load(run.folder).calibration.temperature
            logits = temperature * np.log(chances)
            plain = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            expected["calibration|val, before"] = f"{100 * error(plain, places):.1f}"
            expected["calibration|val, after"] = (
                f"{100 * error(cross_fitted_probabilities(logits, np.array(places)), places):.1f}"
            )
    own = hs.load(run.folder).calibration
    expected["kept|held-out and cross-fitted"] = str(own.num_inliers_accepted)
    expected |= {"coverage": f"{100 * own.coverage:.1f} %", "covered-accuracy": f"{100 * own.accuracy:.1f} %"}
    with open(run.folder / "split.csv", newline="") as file:
        images = [(row["split"], row["label"]) for row in csv.DictReader(file)]
    expected |= {f"count|{s}|{c}": str(images.count((s, c))) for s in ("train", "val", "test") for c in COLOURS}
    assert shown == expected


def test_the_report_states_cross_validation_and_val_has_curves(run: hs.Run) -> None:
    """Val has fewer than 100 images, so selection and calibration also use training images."""
    report = " ".join(run.report_path.read_text().split())
    assert run.results["val"].count < 100
    assert "Val chose" not in report
    assert "Cross-validation on the training images and val selected the depth" in report
    assert hs.load(run.folder).calibration.source.endswith(" training images by 2-fold cross-validation")
    scored = [entry for entry in read_log(run.folder) if entry["event"] == "validation"]
    assert [(entry["stage"], entry["epoch"]) for entry in scored] == [("fine-tune from blocks.6", 0)]
    assert scored[0]["accuracy"] == scored[0]["correct"] / run.results["val"].count


def error(chances: np.ndarray, right: list[int]) -> float:
    """Expected calibration error with 15 bins."""
    sure, hit = chances.max(1), chances.argmax(1) == np.array(right)
    bins = np.clip(np.ceil(15 * sure).astype(int), 1, 15)
    return sum(abs(sure[bins == b].sum() - hit[bins == b].sum()) for b in range(1, 16)) / len(sure)


PLACE = "one => [Number(one.getAttribute('cx')), Number(one.getAttribute('cy'))]"


def test_the_page_works_by_itself(run: hs.Run) -> None:
    with opened(run.report_path) as (page, wrong):
        assert page.title() == "d: Headstart report"
        for section in ("result", "ladder", "curves", "set-1", "set-2", "calibration", "map", "images", "model"):
            assert page.locator(f"section#{section}").count() == 1, section
        for link in page.locator("nav a").all():
            assert page.locator(link.get_attribute("href")).count() == 1
        assert page.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
        assert page.locator("img:not([alt])").count() == 0
        cell = page.locator("section#set-1 .matrix button").first
        cell.focus()
        page.keyboard.press("Enter")
        assert cell.get_attribute("aria-expanded") == "true"
        shown = page.locator("#cell-val li")
        assert shown.count() == min(60, int(cell.inner_text()))
        assert shown.first.locator(".tile").evaluate("one => getComputedStyle(one).backgroundImage").startswith("url(")
        page.keyboard.press("Enter")
        assert page.locator("#cell-val li").count() == 0
        page.locator("#map-drawing").focus()
        page.keyboard.press("ArrowRight")  # selects an image; the next key a neighbour in that direction, if any
        marks = page.locator("circle.mark").evaluate_all(f"all => all.map({PLACE})")
        moved = 0
        for key, (right, down) in {"Left": (-1, 0), "Right": (1, 0), "Up": (0, -1), "Down": (0, 1)}.items():
            here = np.array(page.locator("#chosen").evaluate(PLACE))
            apart = np.array(marks) - here
            along, across = apart @ (right, down), np.abs(apart @ (down, right))
            ahead = apart[(along > 0) & (along >= across)]
            page.keyboard.press(f"Arrow{key}")
            there = np.array(page.locator("#chosen").evaluate(PLACE))
            nearest = np.hypot(*ahead.T).min() if len(ahead) else 0
            assert np.hypot(*(there - here)) == pytest.approx(nearest)
            assert not len(ahead) or (there - here) @ (right, down) > 0
            moved += len(ahead) > 0
        assert moved
        assert "No image selected." not in page.locator("#map-words").inner_text()
        page.locator(".legend button").first.click()
        assert 0 < page.locator("circle.faint").count() < page.locator("circle.mark").count()
        assert not wrong


def test_dark_mode_is_readable(run: hs.Run) -> None:
    light = """(selector) => {
        const rgb = getComputedStyle(document.querySelector(selector));
        return [rgb.backgroundColor, rgb.color].map((own) => own.match(/[0-9.]+/g).slice(0, 3).map(Number))
            .map(([r, g, b]) => (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255);
    }"""
    with opened(run.report_path, dark=True) as (page, wrong):
        ground, ink = page.evaluate(light, "body")
        assert ground < 0.15
        assert ink > 0.8
        for selector in (".scroll th:first-child", ".legend button"):
            assert page.evaluate(light, selector)[0] < 0.2
        assert page.evaluate(light, "svg.chart")[0] > 0.99  # drawn with dark ink
        assert not wrong
    with opened(run.report_path) as (page, wrong):
        assert page.evaluate(light, "body")[0] > 0.99
        assert not wrong


@pytest.mark.exhaustive
def test_on_a_phone_nothing_is_wider_than_the_screen(run: hs.Run) -> None:
    with opened(run.report_path, width=390) as (page, wrong):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        beyond = """[...document.querySelectorAll("table.stacked td, .facts td")]
            .filter((one) => one.getBoundingClientRect().right > 390).map((one) => one.outerHTML)"""
        assert not page.evaluate(beyond)
        ladder = page.locator("#ladder table").inner_text()
        assert "log loss" in ladder
        assert "decision" in ladder
        page.locator("section#set-1 .matrix button").last.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not wrong


def test_what_has_no_value_is_a_dash(run: hs.Run) -> None:
    text = run.report_path.read_text()
    (row,) = re.findall(r'<tr><th scope="row">kNN</th>.*?</tr>', text)
    assert '<td data-label="log loss">-</td>' in row
    (probe,) = re.findall(r'<tr><th scope="row">probe</th><td data-label="accuracy">.*?</tr>', text)
    assert re.search(r'<td data-label="log loss">\d\.\d{3}</td>', probe)


def test_a_report_written_again_is_identical(run: hs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main("report", run.folder, "--out", tmp_path / "again.html", capsys=capsys)
    assert (code, out) == (0, f"Report: {tmp_path / 'again.html'}\n")

    def told(file: Path) -> str:  # the time of the report step is unknown while the report is written
        return re.sub(r"<tr><th scope=\"row\">write the report.*?</tr>", "", file.read_text()).strip()

    assert told(tmp_path / "again.html").split() == told(run.report_path).split()
    assert run.report_path.stat().st_size < 15e6


def test_cold_warm_and_damaged_caches_give_the_same_report(
    run: hs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    cold = hs.report(run.folder, tmp_path / "cold.html").read_bytes()
    kept = list((tmp_path / "cache").rglob("rows.bin"))
    assert {file.parent.parent.name for file in kept} == {"thumbnails", "heat-maps"}
    with monkeypatch.context() as patch:
        patch.setattr("headstart.reports.shown_images.decode", None)
        patch.setattr("headstart.reports.shown_images.heat_maps", None)
        assert hs.report(run.folder, tmp_path / "warm.html").read_bytes() == cold
    for file in kept:
        data = bytearray(file.read_bytes())
        data[:: len(data) // 5] = bytes(255 - value for value in data[:: len(data) // 5])
        file.write_bytes(data)
    assert hs.report(run.folder, tmp_path / "damaged.html").read_bytes() == cold


def test_missing_images_are_reported(run: hs.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    for name in ("predictions.csv", "map.csv"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(str(run.folder.parent / "d"), str(tmp_path / "gone")))
    text = hs.report(folder).read_text()
    assert "can no longer be read" in text
    assert run.scores.sentence in text


def test_a_folder_without_a_finished_run_is_an_error(
    run: hs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = main("report", tmp_path, capsys=capsys)
    assert (code, "not a run folder" in err) == (1, True)
    folder = shutil.copytree(run.folder, tmp_path / "run")
    (folder / "predictions.csv").write_text("path,split\n1.jpg,val\n")
    code, _, err = main("report", folder, capsys=capsys)
    assert (code, "predictions.csv: damaged" in err) == (1, True)
    assert main("report", run.folder, "--out", tmp_path / "r.pdf", capsys=capsys)[0] == 1


def test_a_run_without_a_map_has_a_report_without(run: hs.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    (folder / "map.csv").unlink()
    document = json.loads((folder / "run.json").read_text())
    for name in ("base", "split", "sizes"):  # as in older runs
        del document["data"][name]
    (folder / "run.json").write_text(json.dumps(document))
    text = hs.report(folder).read_text()
    assert 'id="map"' not in text
    assert run.scores.sentence in text


def test_the_map_survives_its_file(run: hs.Run) -> None:
    own = read_map(run.folder)
    assert own is not None
    assert set(own.splits) == {"train", "val", "test"}
    assert all(bool(near) == (split != "train") for near, split in zip(own.nearest, own.splits, strict=True))
    (run.folder / "copy.csv").write_text(own.csv())
    assert (run.folder / "copy.csv").read_text() == (run.folder / "map.csv").read_text()
    (run.folder / "copy.csv").unlink()


def test_a_file_that_never_was_an_image_is_not_reported_as_missing(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", {"blue": 24, "red": 24})
    (data / "red" / "words.jpg").write_text("no image")
    run = hs.train(data, out=tmp_path / "run", image_size=64)
    text = run.report_path.read_text()
    assert "words.jpg: not an image" in text
    assert "can no longer be read" not in text


@pytest.mark.exhaustive
def test_a_map_of_many_classes_has_colours_for_the_largest_and_one_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.reports.map_drawing.LEGEND", 2)
    data = write_classes(tmp_path / "d", {"blue": 30, "green": 18, "red": 24})
    run = hs.train(data, out=tmp_path / "run", image_size=64)
    legend = re.findall(r'class="dot" style="background:#\w+"></span>(\w+)<', run.report_path.read_text())
    assert legend == ["blue", "red", "others"]
