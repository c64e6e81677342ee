"""Figures in words."""

from __future__ import annotations

import pytest

from headstart.evaluation.metrics import wilson
from headstart.figures import count_text, interval_text, percent_text, share_text


def test_a_share_is_percent_first_then_count_and_interval() -> None:
    assert share_text(508, 550, *wilson(508, 550)) == "92.4 % (508/550), 95 % CI 89.8-94.3"
    assert (percent_text(0.9236), interval_text(0.898, 0.943)) == ("92.4 %", "89.8-94.3")


@pytest.mark.parametrize(
    ("correct", "count", "words"),
    [(0, 0, "0.0 % (0/0)"), (3, 3, "100.0 % (3/3)"), (1234, 2500, "49.4 % (1,234/2,500)")],
)
def test_a_count_is_shown_with_its_share(correct: int, count: int, words: str) -> None:
    assert count_text(correct, count) == words
