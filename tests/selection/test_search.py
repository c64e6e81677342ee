"""The search among candidates: the best is chosen, decoys never are, and the rounds get fewer candidates."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from random_images import write_classes
from recorded_progress import RecordedProgress
from safetensors.torch import save_file

from headstart.backbone.weights import random_backbone
from headstart.data.dataset import open_data
from headstart.data.scan import scan
from headstart.selection import search as module
from headstart.selection.candidates import Candidate, find_candidates
from headstart.selection.results import Speed
from headstart.selection.search import SearchImages, search
from headstart.selection.time_limit import TimeLimit


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SearchImages:
    data = open_data(write_classes(tmp_path_factory.mktemp("d") / "c", {"blue": 40, "green": 40, "red": 40}))
    files = data.files()
    keys = scan(files).keys
    return SearchImages(keys, dict(zip(keys, files, strict=True)), data.labels, np.arange(len(keys)))


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, ...]:
    """Three networks of random weights."""
    folder, words = tmp_path_factory.mktemp("w"), []
    for seed in range(3):
        file = folder / f"{seed}.safetensors"
        save_file(random_backbone("test_resnet", image_size=64, seed=seed).module.state_dict(), file)
        words.append(f"test_resnet={file}")
    return find_candidates(words, image_size=64)


def shaped(monkeypatch: pytest.MonkeyPatch, losses: dict[str, float]) -> list[tuple[str, int]]:
    """Cross-validation with given mean losses by the name of the weights' file; returns what was evaluated."""
    evaluated: list[tuple[str, int]] = []

    def evaluate(_search: Any, one: Any, size: int) -> None:
        evaluated.append((one.candidate.source, size))
        noise = sum(np.random.default_rng(seed).normal(0, 0.01, size) for seed in (0, len(evaluated)))
        one.rounds[size] = losses[one.candidate.source] + noise
        one.correct = size // 2

    monkeypatch.setattr(module._Search, "evaluate", evaluate)
    monkeypatch.setattr(module, "variants", lambda _candidate: [])
    monkeypatch.setattr(module, "FIRST", 20)
    return evaluated


@pytest.mark.slow
def test_rounds_have_more_images_and_fewer_candidates(
    candidates: tuple[Candidate, ...], images: SearchImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"0.safetensors": 0.5, "1.safetensors": 0.2, "2.safetensors": 0.9}
    evaluated = shaped(monkeypatch, losses)
    progress = RecordedProgress()
    found = search(candidates, images, device="cpu", progress=progress)
    assert found.results[0].source == "1.safetensors"
    assert [one.candidate.source for one in found.near] == ["1.safetensors"]
    assert [size for _, size in evaluated] == [20, 20, 20]  # the others were clearly worse at once
    assert [result.log_loss for result in found.results] == sorted(result.log_loss for result in found.results)
    assert "chosen" in found.results[0].decision
    assert all("dropped after 20 images" in result.decision for result in found.results[1:])
    assert any("dropped: " in line for line in progress.said)


@pytest.mark.slow
def test_candidates_within_noise_go_on_to_all_images(
    candidates: tuple[Candidate, ...], images: SearchImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"0.safetensors": 0.2001, "1.safetensors": 0.2, "2.safetensors": 0.9}
    evaluated = shaped(monkeypatch, losses)
    found = search(candidates, images, device="cpu", progress=RecordedProgress())
    assert [size for _, size in evaluated] == [20, 20, 20, 60, 60, 120, 120]
    assert found.results[-1].images == 20
    assert found.results[0].source in ("0.safetensors", "1.safetensors")
    assert {one.candidate.source for one in found.near} == {"0.safetensors", "1.safetensors"}


@dataclass
class Allows:
    """A time limit that allows the first ``count`` of what is asked."""

    count: int
    fine_tunes: bool = True

    gain: float = 1.0

    def begin(self, _speed: Speed) -> None: ...

    def needed_after(self, _speed: Speed) -> float:
        return 0.0

    def allows(self, seconds: float, _speed: Speed, *, share: float = 1.0) -> bool:
        if not seconds:
            return True
        self.count -= 1
        return self.count >= 0


def forward(seconds: float) -> Speed:
    return Speed(0.0, seconds)


def test_without_time_to_fine_tune_none_is_kept_for_it() -> None:
    limit = TimeLimit(
        time.monotonic() + 30, lambda speed: 1e4 * speed.whole, lambda speed: 1e2 * speed.whole, lambda _speed: 0.0
    )
    limit.begin(forward(1e-3))
    assert limit.allows(10, forward(1e-3))
    assert not limit.allows(10, forward(1e-2)), "fine-tuning it would take too long"
    limit.begin(forward(1e-1))
    assert limit.allows(10, forward(1e-1))
    assert not limit.allows(25, forward(1e-1))


def test_less_time_is_kept_where_fine_tuning_computes_faster_than_the_search() -> None:
    limit = TimeLimit(time.monotonic() + 30, lambda s: 1e4 * s.whole, lambda _: 0.0, lambda _: 0.0)
    speed = Speed(0.001, 0.004)
    limit.begin(speed)
    assert not limit.fine_tunes, "50 s"
    limit.gain = 3.0
    limit.begin(speed)
    assert limit.fine_tunes, "10 s to read and 13 s to compute"
    assert limit.needed_after(speed) == pytest.approx(10 + 40 / 3)


def test_time_is_kept_for_a_thorough_fine_tuning_up_to_a_limit() -> None:
    def limit(deepest: float) -> TimeLimit:
        return TimeLimit(time.monotonic() + 30, lambda _: 1.0, lambda _: 0.0, lambda _: deepest, most_kept=20)

    speed = forward(1e-3)
    assert limit(0.0).allows(28, speed)
    assert not limit(10.0).allows(28, speed)
    assert limit(10.0).allows(15, speed)
    assert not limit(1e6).allows(15, speed)
    assert limit(1e6).allows(8, speed)


@pytest.mark.slow
def test_a_search_without_time_evaluates_the_first_candidate(
    candidates: tuple[Candidate, ...], images: SearchImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, progress = shaped(monkeypatch, dict.fromkeys(("0.safetensors",), 0.2)), RecordedProgress()
    limit = TimeLimit(time.monotonic(), *[lambda _speed: 0.0] * 3)
    found = search(candidates, images, time_limit=limit, device="cpu", progress=progress)
    assert evaluated == [("0.safetensors", 20)]
    assert len(found.skipped) == 2
    assert found.as_json()["skipped"] == list(found.skipped)
    assert sum(line.startswith("Not tried for lack of time: test_resnet at 64 pixels") for line in progress.said) == 2


@pytest.mark.slow
def test_a_search_without_time_for_a_second_round_ends_after_the_first(
    candidates: tuple[Candidate, ...], images: SearchImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = shaped(monkeypatch, dict.fromkeys(("0.safetensors", "1.safetensors", "2.safetensors"), 0.2))
    limit: Any = Allows(2)  # of the other two candidates
    found = search(candidates, images, time_limit=limit, device="cpu", progress=RecordedProgress())
    assert {size for _, size in evaluated} == {20}
    assert "no time for the next round" in found.stopped
    assert "no time for the next round" in found.results[0].decision


@pytest.mark.slow
def test_a_candidate_within_noise_that_can_be_fine_tuned_is_said_to_be_chosen(
    candidates: tuple[Candidate, ...], images: SearchImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaped(monkeypatch, {"0.safetensors": 0.2001, "1.safetensors": 0.2, "2.safetensors": 0.9})
    found = search(candidates, images, device="cpu", progress=RecordedProgress())
    other = found.with_chosen(1, "there is time to fine-tune it")
    assert other.results[0].is_of(found.near[1].candidate)
    assert other.results[0].decision == "chosen: within noise of the best, and there is time to fine-tune it"
    assert other.results[1].decision.startswith("not chosen: ")
    assert "is used, within noise, and there is time to fine-tune it" in other.results[1].decision
    assert len(other.results) == len(found.results)


@pytest.mark.slow
def test_a_variant_that_is_worse_on_fewer_images_is_not_evaluated_on_all(
    candidates: tuple[Candidate, ...], images: SearchImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"0.safetensors": 0.2, "1.safetensors": 0.9, "2.safetensors": 0.9, "worse": 0.3, "better": 0.1}
    evaluated = shaped(monkeypatch, losses | {"1.safetensors": 0.2001})
    tried = [replace(candidates[0], source=name) for name in ("worse", "better")]
    monkeypatch.setattr(module, "variants", lambda _candidate: tried)
    found = search(candidates, images, device="cpu", progress=RecordedProgress())
    assert evaluated[-3:] == [("worse", 60), ("better", 60), ("better", 120)]
    assert found.results[0].source == "better"
    assert "on 60 images" in next(one.decision for one in found.results if one.source == "worse")


@pytest.mark.slow
def test_comparing_evaluates_every_candidate_on_every_image(
    candidates: tuple[Candidate, ...], images: SearchImages
) -> None:
    found = search(candidates, images, drops=False, device="cpu", progress=RecordedProgress())
    assert {result.images for result in found.results} == {len(images.keys)}
    assert all(0 <= result.low <= result.correct / result.images <= result.high <= 1 for result in found.results)
    document = found.as_json()
    assert document["chosen"] == found.results[0].architecture
    assert "/" not in str(document)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_choice_whatever_is_cached(
    candidates: tuple[Candidate, ...], images: SearchImages
) -> None:
    """Law 11."""
    one, other = (search(candidates, images, seed=3, device="cpu", progress=RecordedProgress()) for _ in range(2))
    assert [r.log_loss for r in one.results] == [r.log_loss for r in other.results]


def test_samples_are_stratified_nested_and_differ_by_seed(images: SearchImages) -> None:
    order, other = module._nested_order(images, 0), module._nested_order(images, 1)
    assert sorted(order) == sorted(other) == list(range(len(images.keys)))
    assert order != other
    assert np.bincount(images.labels[order[:30]]).tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(50, [50]), (400, [400]), (800, [400, 800]), (2_569, [400, 1_200, 2_569]), (50_000, [400, 1_200, 3_600, 10_000])],
)
def test_the_last_round_has_all_images(count: int, sizes: list[int]) -> None:
    assert module._sizes(np.arange(count) % 5) == sizes


def test_a_round_has_several_images_of_most_classes() -> None:
    assert module._sizes(np.arange(12_000) % 1_000) == [3_600, 10_000]


def contender(candidate: Candidate, losses: npt.NDArray[np.float64]) -> Any:
    unused: Any = None
    return module._Contender(candidate, unused, unused, rounds={len(losses): losses})


def contenders(losses: dict[str, float]) -> list[Any]:
    """The installed backbones as contenders with given mean losses on the same images."""
    known = {one.architecture[:21]: one for one in find_candidates("offline")}
    noise = np.random.default_rng(0).normal(0, 0.1, 500)
    found = []
    for place, (name, loss) in enumerate(sorted(losses.items(), key=lambda item: item[1])):
        own = np.random.default_rng(place + 1).normal(0, 0.1, 500)
        found.append(contender(known[name], loss + noise + own - own.mean()))
    return found


@pytest.mark.parametrize(
    ("losses", "max_cost", "expected"),
    [
        ((0.24, 0.24, 0.24), 2.0, ["2+1", "2+0"]),  # all three cost more than twice as much as Lite2
        ((0.24, 0.24, 0.24), 3.0, ["2+0+1", "2+1", "2+0"]),
        ((0.24, 0.24, 0.50), 2.0, ["1+0"]),
        ((0.24, 0.50, 0.50), 9.0, []),  # the others are worse
        ((0.50, 0.24, 0.24), 2.0, ["2+1"]),
        ((0.24, 0.24, 0.24), 1.0, []),
    ],
)
def test_the_largest_network_within_noise_is_combined_with_the_others(
    losses: tuple[float, ...], max_cost: float, expected: list[str]
) -> None:
    ranked = contenders({f"tf_efficientnet_lite{i}": loss + 1e-4 * i for i, loss in enumerate(losses)})
    found = module._combinations(ranked, max_cost)
    names = ["+".join(part[len("tf_efficientnet_lite")] for part in one.architecture.split("+")) for one in found]
    assert names == expected


def test_single_networks_stay_usable_beside_a_combination_that_is_better() -> None:
    ranked = contenders({"tf_efficientnet_lite0": 0.24, "tf_efficientnet_lite1": 0.241, "tf_efficientnet_lite2": 0.5})
    pair = contender(module._combinations(ranked, 2.0)[0], ranked[0].losses - 0.05)
    near = module._usable([pair, *ranked])
    assert [one.candidate.architecture.count("lite") for one in near] == [2, 1, 1]
    assert [one.is_within_noise for one in near] == [True, False, False]


def test_too_few_images_are_not_compared(candidates: tuple[Candidate, ...], images: SearchImages) -> None:
    few = SearchImages(images.keys[:30], images.files, images.labels[:30], images.parts[:30])
    progress = RecordedProgress()
    found = search(candidates, few, device="cpu", progress=progress)
    assert found.results == ()
    assert [near.candidate for near in found.near] == [candidates[0]]
    assert "too few training images" in found.as_json()["stopped"]
    assert any("too few training images" in line for line in progress.said)
