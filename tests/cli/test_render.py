"""Result lines, tables and file names on stdout."""

from __future__ import annotations

import numpy as np
import pytest

from headstart.cli.render import print_table, result_line
from headstart.evaluation.predictions import evaluate_predictions
from headstart.files import printable


def test_a_result_is_percent_first_then_count_and_interval() -> None:
    probabilities = np.full((550, 2), 0.3)
    probabilities[np.arange(550), np.arange(550) % 2] = 0.7
    labels = np.arange(550) % 2
    labels[:42] = 1 - labels[:42]
    scores = evaluate_predictions("val", [str(i) for i in range(550)], labels, probabilities, ("a", "b")).scores
    assert result_line(scores) == "val accuracy 92.4 % (508/550), 95 % CI 89.8-94.3, macro F1 0.924"


def test_with_several_labels_the_mean_average_precision_comes_first() -> None:
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    files = ["0", "1", "2", "3"]
    found = evaluate_predictions("test", files, labels, np.clip(labels, 0.1, 0.9), ("a", "b"), thresholds=[0.5, 0.5])
    line = result_line(found.scores)
    assert line.startswith("test mAP 100.0 %, 95 % CI 100.0-100.0, all labels correct 100.0 % (4/4), 95 % CI 51.0-")


def test_numbers_are_aligned_to_the_right_and_words_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count"], [["a", "7"], ["bcdef", "1,234"]])
    assert capsys.readouterr().out.splitlines() == ["name   count", "a          7", "bcdef  1,234"]


def test_a_file_name_does_not_break_the_line() -> None:
    assert printable("a\nb\x1b\udcff.png") == "a\\nb\\x1b\\xff.png"
