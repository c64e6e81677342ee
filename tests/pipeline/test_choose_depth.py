"""Depth and backbone within a time: what is used, deeper or larger, of candidates that are equally good."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from headstart.distributed.rank_group import START_SECONDS, RankSettings
from headstart.pipeline.choose_depth import DEEP, SHALLOW, SHORTEST, by_preference, depths_for, seconds_of
from headstart.selection.candidates import combined, find_candidates
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
    order = by_preference(found, IMAGES, 1e4, DEEP)
    assert [one.place for one in order] == [1, 2, 0]
    assert "more weights" in order[0].why


def test_a_deeper_fine_tuning_comes_before_a_larger_network() -> None:
    near = Near(SMALL, Speed(0.0, 0.01)), Near(LARGE, Speed(0.0, 0.02))
    seconds = seconds_of(DEEP[2], IMAGES, Speed(0.0, 0.01)) + 1
    order = by_preference(selection(*near), IMAGES, seconds, DEEP)
    assert [one.place for one in order] == [0, 1]
    order = by_preference(selection(*reversed(near)), IMAGES, seconds, DEEP)
    assert order[0].place == 1
    assert order[0].why == "there is time to fine-tune it deeper"


def test_workers_that_take_longer_leave_less_time_to_fine_tune() -> None:
    speed = Speed(0.0, 0.01)
    seconds = seconds_of(DEEP[2], IMAGES, speed) + 1
    slower = partial(RankSettings(2).seconds, device="cpu")
    assert seconds_of(DEEP[2], IMAGES, speed, slower) > seconds + START_SECONDS - 1
    assert seconds_of(None, IMAGES, speed, slower) == seconds_of(None, IMAGES, speed)
    found = selection(Near(SMALL, speed))
    efforts = [by_preference(found, IMAGES, seconds, DEEP, *more)[0].effort for more in ((), (slower,))]
    assert efforts == ["deep", "quick"]


def test_without_time_to_fine_tune_the_best_probe_is_used() -> None:
    found = selection(Near(SMALL, Speed(0.0, 0.01)), Near(LARGE, Speed(0.0, 0.02)))
    assert [one.place for one in by_preference(found, IMAGES, 1.0, DEEP)] == [0, 1]


def test_networks_side_by_side_come_before_a_single_one_if_they_can_be_fine_tuned_as_deep() -> None:
    pair = combined([LARGE, MIDDLE])
    near = Near(pair, Speed(0.0, 0.04)), Near(SMALL, Speed(0.0, 0.01), is_within_noise=False)
    order = by_preference(selection(*near), IMAGES, 1e4, DEEP)
    assert [one.place for one in order] == [0, 1]
    seconds = seconds_of(DEEP[2], IMAGES, Speed(0.0, 0.01)) + 1
    order = by_preference(selection(*near), IMAGES, seconds, DEEP)
    assert [one.place for one in order] == [1, 0]
    found = selection(*near).with_chosen(1, order[0].why).results
    assert found[0].decision == f"chosen: {order[0].why}"
    assert found[1].decision == f"not chosen: {SMALL.architecture} is used, because {order[0].why}"
