from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headstart.reports.image_map import LEAST, make_map


def test_the_map_keeps_kinds_together_and_names_the_nearest_training_images() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(3), 40)
    features = (5 * np.eye(3, 16)[kinds] + rng.normal(size=(120, 16))).astype(np.float32)
    splits = ["train" if i % 4 else "val" for i in range(120)]
    made = make_map([f"{i}.jpg" for i in range(120)], splits, [str(k) for k in kinds], features)
    assert made is not None
    assert made.points.min() == 0
    assert made.points.max() == 1
    apart = np.linalg.norm(made.points[:, None] - made.points[None], axis=2) + 9 * np.eye(120)
    assert (kinds[apart.argmin(1)] == kinds).mean() > 0.95
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    train = [i for i in range(120) if i % 4]
    best = train[int(np.argmax(unit[train] @ unit[8]))]
    assert made.nearest[8][0] == f"{best}.jpg"
    assert made.nearest[9] == ()
    assert make_map([""] * (LEAST - 1), ["train"] * (LEAST - 1), [""] * (LEAST - 1), features[: LEAST - 1]) is None


def test_a_large_map_places_further_images_between_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.reports.image_map.PLACED", 60)
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(3), 60)
    features = (5 * np.eye(3, 16)[kinds] + rng.normal(size=(180, 16))).astype(np.float32)
    made = make_map([str(i) for i in range(180)], ["train"] * 180, [str(k) for k in kinds], features)
    assert made is not None
    apart = np.linalg.norm(made.points[:, None] - made.points[None], axis=2) + 9 * np.eye(180)
    assert (kinds[apart.argmin(1)] == kinds).mean() > 0.95


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_with_identical_features_are_placed_at_the_centre(value: float) -> None:
    """t-SNE on them ended the process with a segmentation fault."""
    features = np.full((40, 16), value, np.float32)
    made = make_map([str(i) for i in range(40)], ["train"] * 30 + ["val"] * 10, ["a"] * 40, features)
    assert made is not None
    assert np.array_equal(made.points, np.full((40, 2), 0.5))
    assert len(made.nearest[-1]) == 3


def test_the_positions_of_a_map_come_from_the_cache_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    named = [str(i) for i in range(60)], ["train"] * 60, ["a"] * 60
    first = make_map(*named, features, cache=tmp_path)
    monkeypatch.setattr("headstart.reports.image_map._placed", lambda *_: pytest.fail("was placed again"))
    again = make_map(*named, features, cache=tmp_path)
    assert first is not None
    assert again is not None
    assert np.array_equal(first.points, again.points)
    with pytest.raises(pytest.fail.Exception):
        make_map(*named, features + 1, cache=tmp_path)
    with pytest.raises(pytest.fail.Exception):
        make_map(*named, features, seed=1, cache=tmp_path)
