"""Figures in words: a share in percent, its count, and its interval."""

from __future__ import annotations


def percent_text(share: float) -> str:
    """A share, 0-1, as "92.4 %"."""
    return f"{100 * share:.1f} %"


def interval_text(low: float, high: float) -> str:
    """Both ends of an interval of a share, 0-1, in percent: "89.8-94.3"."""
    return f"{100 * low:.1f}-{100 * high:.1f}"


def count_text(correct: int, count: int) -> str:
    """A share as percent and count: "92.4 % (508/550)"; 0.0 % of no trials."""
    return f"{100 * correct / max(1, count):.1f} % ({correct:,}/{count:,})"


def share_text(correct: int, count: int, low: float, high: float) -> str:
    """A share as percent, count and 95 % interval: "92.4 % (508/550), 95 % CI 89.8-94.3".

    Args:
        correct: successes, 0 to ``count``.
        count: trials.
        low: lower end of the interval, 0-1.
        high: upper end, 0-1.
    """
    return f"{count_text(correct, count)}, 95 % CI {interval_text(low, high)}"
