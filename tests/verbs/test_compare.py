"""Comparison of methods: the scores are those of the runs, in the table and the chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from random_images import write_classes

import headstart as hs
from headstart.errors import OptionError, RunError
from headstart.evaluation.comparison import Compared, comparison_markdown
from headstart.reports.comparison_chart import comparison_chart

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.exhaustive
def test_every_method_is_a_run_with_the_scores_of_the_table(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "mixed", {"first": 30, "second": 30})
    choices = {"image_size": 32, "device": "cpu", "seconds": 0.1}
    found = hs.compare(data, out=tmp_path / "out", only=["probes", "batchnorm", "weights"], **choices)
    names = [row.name for row in found.rows]
    assert names[:5] == [
        "logistic regression",
        "linear SVM",
        "Gaussian SVM",
        "nearest neighbours",
        "nearest class mean",
    ]
    assert [row.group for row in found.rows[5:]] == ["depths", "batchnorm", "depths", "weights"]
    assert names[-1] == "all layers, from scratch"
    for row in found.rows:
        run = hs.load_run(found.folder / row.run)
        assert (row.correct, row.count, row.log_loss) == (run.scores.correct, run.scores.count, run.scores.log_loss)
        assert run.best == (run.rungs[-1].name if run.rungs else run.best)  # the last rung is always kept
        assert row.epochs == (1 if run.rungs else 0)
    recipes = [hs.load_run(found.folder / row.run).recipe for row in found.rows]
    assert [r.update_batchnorm for r in recipes[5:]] == [False, True, False, False]
    assert [r.scratch for r in recipes[5:]] == [False, False, False, True]
    document = json.loads((found.folder / "comparison.json").read_text())
    assert [row["name"] for row in document["rows"]] == names
    text = (found.folder / "comparison.md").read_text()
    assert all(f"| {row.name} | {100 * row.accuracy:.1f} % ({row.correct}/{row.count}) |" in text for row in found.rows)
    chart = ElementTree.parse(found.folder / "comparison.svg")
    assert all(row.name in [text.text for text in chart.iter(f"{SVG}text")] for row in found.rows)


def test_invalid_comparisons_are_refused_before_any_work(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "mixed", {"first": 9, "second": 9})
    with pytest.raises(OptionError, match="The groups are probes, heads"):
        hs.compare(data, out=tmp_path / "out", only=["forests"])
    with pytest.raises(OptionError, match="more than 0"):
        hs.compare(data, out=tmp_path / "out", seconds=0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="nothing is overwritten"):
        hs.compare(data, out=tmp_path / "out")


def test_table_and_chart_accept_any_row() -> None:
    rows = [
        Compared("probes", "one | two", 0, 3, 0.0, 0.56, 0.7, 1.0, 0, "runs/one"),
        Compared("weights", "scratch", 3, 3, 0.44, 1.0, 0.1, 900.0, 7, "runs/two"),
    ]
    text = comparison_markdown("title", rows)
    assert "| scratch | 100.0 % (3/3) | 44.0-100.0 | 0.100 | 7 | 900 |" in text
    chart = ElementTree.fromstring(comparison_chart(rows))
    assert len(list(chart.iter(f"{SVG}circle"))) == 2
    short, long = (float(bar.get("width", "")) for bar in list(chart.iter(f"{SVG}rect"))[1:])
    assert long > 100 * short


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"seconds": "3"}, "seconds: expected a number, got '3'"),
        ({"seconds": None}, "seconds: expected a number"),
        ({"only": 3}, "only: expected one or more of probes"),
        ({"only": [1]}, "only: expected one or more of probes"),
        ({"only": "nonsense"}, "compare nonsense: no such group"),
        ({"seed": "1"}, "seed: expected a whole number"),
        ({"device": 3}, "device 3: expected auto"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(choices: dict[str, Any], words: str, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "d", {"blue": 4, "red": 4})
    with pytest.raises(OptionError, match=words):
        hs.compare(data, out=tmp_path / "out", **choices)
