"""Depth and backbone within a time: what is used, deeper or larger, of candidates that are equally good."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headstart.pipeline.choose_depth import DEEP, SHALLOW, SHORTEST, by_preference, depths_for, seconds_of
from headstart.selection.candidates import find_candidates
from headstart.selection.results import CandidateResult, Near, Selection, Speed
from headstart.training.ladder import DEEPER_FROM, EFFORTS

LITE = {candidate.architecture[:21]: candidate for candidate in find_candidates("offline")}
SMALL, MIDDLE, LARGE = (LITE[f"tf_efficientnet_lite{i}"] for i in range(3))
IMAGES: Any = SimpleNamespace(keys={"train": [b""] * 2500}, num_images=3000)


def selection(*near: Near, log_loss: float = 0.25) -> Selection:
    results = [
        CandidateResult(
            one.candidate.architecture, one.candidate.image_size, "auto", one.candidate.source, 1, 1.0, "", 100, 90,
            0.8, 0.95, log_loss, 1.0, "chosen",
        )
        for one in near
    ]  # fmt: skip
    return Selection(tuple(results), near)


def test_the_estimates_increase_with_depth_and_views() -> None:
    for depths in (SHALLOW, DEEP):
        seconds = [seconds_of(depth, IMAGES, Speed(0.0, 0.01)) for depth in depths]
        assert seconds == sorted(seconds)
        assert seconds[0] > seconds_of(None, IMAGES, Speed(0.0, 0.01))


def test_each_depth_has_one_rung_and_the_shortest_comes_first() -> None:
    for depths in (SHALLOW, DEEP):
        assert depths[0] is SHORTEST
        assert all(len(EFFORTS[depth.effort].depths) == 1 for depth in depths)


@pytest.mark.parametrize(("log_loss", "depths"), [(DEEPER_FROM + 0.01, DEEP), (DEEPER_FROM - 0.01, SHALLOW)])
def test_deeper_layers_are_trained_where_the_probe_leaves_enough_to_gain(log_loss: float, depths: object) -> None:
    assert depths_for(selection(Near(SMALL, Speed(0.0, 0.01)), log_loss=log_loss)) is depths


def test_the_largest_candidate_that_can_be_fine_tuned_as_deep_comes_first() -> None:
    found = selection(Near(SMALL, Speed(0.0, 0.01)), Near(LARGE, Speed(0.0, 0.02)), Near(MIDDLE, Speed(0.0, 0.015)))
    order = by_preference(found, IMAGES, 1e4, DEEP, max_cost=10.0)
    assert [one.place for one in order] == [1, 2, 0]
    assert "more weights" in order[0].why


def test_a_deeper_fine_tuning_comes_before_a_larger_network() -> None:
    near = Near(SMALL, Speed(0.0, 0.01)), Near(LARGE, Speed(0.0, 0.02))
    seconds = seconds_of(DEEP[2], IMAGES, Speed(0.0, 0.01)) + 1
    order = by_preference(selection(*near), IMAGES, seconds, DEEP, max_cost=10.0)
    assert [one.place for one in order] == [0, 1]
    order = by_preference(selection(*reversed(near)), IMAGES, seconds, DEEP, max_cost=10.0)
    assert order[0].place == 1
    assert order[0].why == "there is time to fine-tune it deeper"


def test_what_costs_more_than_the_limit_is_not_used_instead_of_the_best() -> None:
    found = selection(Near(SMALL, Speed(0.0, 0.01)), Near(LARGE, Speed(0.0, 0.02)), Near(MIDDLE, Speed(0.0, 0.015)))
    assert [one.place for one in by_preference(found, IMAGES, 1e4, DEEP, max_cost=2.0)] == [2, 0]
    only = selection(Near(replace(SMALL, gmacs=9.0), Speed(0.0, 0.01)))
    assert [one.place for one in by_preference(only, IMAGES, 1e4, DEEP, max_cost=1.0)] == [0]


def test_without_time_to_fine_tune_the_best_probe_is_used() -> None:
    found = selection(Near(SMALL, Speed(0.0, 0.01)), Near(LARGE, Speed(0.0, 0.02)))
    assert [one.place for one in by_preference(found, IMAGES, 1.0, DEEP, max_cost=10.0)] == [0, 1]
