"""The report of a run on flowers: written soon, small enough, whole, and quiet in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import opened
from machine_speed import slowness
from photographs import Timed


def test_it_takes_under_20_seconds_and_15_megabytes(command: Callable[..., Timed], flowers_run: Path) -> None:
    done = command("report", flowers_run)
    assert done.status == 0, done.err
    assert done.seconds < 20 * slowness()
    assert (flowers_run / "report.html").stat().st_size < 15e6


@pytest.mark.untimed
def test_every_section_is_there_and_nothing_leaves_the_page(flowers_run: Path) -> None:
    with opened(flowers_run / "report.html") as (page, wrong):
        for section in ("result", "set-1", "calibration", "map", "images", "model"):
            assert page.locator(f"section#{section}").is_visible()
        assert page.locator("circle.mark").count() == 3119
        assert page.locator(".mistakes li").count() == 24
        assert page.locator(".mistakes li .near .one").count() == 72
        page.locator(".matrix button").first.click()
        assert page.locator("#cell-val .tile:not(.gone)").count() == 60
        assert page.locator(".tile.gone").count() == 0
        assert not wrong
    with opened(flowers_run / "report.html", width=390) as (page, wrong):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not wrong
