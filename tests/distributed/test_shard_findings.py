"""Label errors, outliers and equal files among images in shards are named; without them nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stub_work import SyntheticFeatures

from headstart.data.inspection import by_severity
from headstart.distributed.compute import compute_shards
from headstart.distributed.shard_findings import shard_findings
from headstart.distributed.sharded_features import ShardedFeatures, open_sharded_features
from headstart.distributed.shards import ImageRow
from headstart.progress import SilentProgress

COUNT = 240


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> ShardedFeatures:
    out = tmp_path_factory.mktemp("s") / "features"
    rows = [ImageRow(f"/d/{i}.jpg", "abc"[i % 3]) for i in range(COUNT)]
    work = SyntheticFeatures()
    compute_shards(work, rows, out, work.here, total=COUNT, shard_size=50, progress=SilentProgress())
    return open_sharded_features(out)


def found(sharded: ShardedFeatures, most: int = 1000, seed: int = 0) -> dict[str, tuple[str, ...]]:
    findings = shard_findings(sharded, 24.0, seed=seed, most_checked=most, progress=SilentProgress())
    assert findings == by_severity(findings)
    return {finding.kind: finding.items for finding in findings}


def relabelled(sharded: ShardedFeatures, places: list[int]) -> ShardedFeatures:
    labels = sharded.labels.copy()
    labels[places] = (labels[places] + 1) % 3
    return replace(sharded, labels=labels)


def test_clean_images_have_no_finding(sharded: ShardedFeatures) -> None:
    assert found(sharded) == {}


def test_wrong_labels_are_named(sharded: ShardedFeatures) -> None:
    planted = range(1, COUNT, 24)
    items = found(relabelled(sharded, list(planted)))["wrong-label"]
    named = {item.partition(": ")[0] for item in items}
    assert named <= {f"/d/{place}.jpg" for place in planted}
    assert len(named) >= 5
    assert all("labelled c (" in item and "more likely b (" in item for item in items)


def test_an_outlier_is_named(sharded: ShardedFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: ShardedFeatures, places: np.ndarray) -> np.ndarray:
        features = whole[places].copy()
        features[places == 12] = np.random.default_rng(1).normal(size=whole.shape[1]) * 5
        return features

    whole = sharded.read(np.arange(COUNT))
    monkeypatch.setattr(ShardedFeatures, "read", read)
    (item,) = found(sharded)["outlier"]
    assert item.startswith("/d/12.jpg: ")


def test_files_with_equal_bytes_are_named_among_all_images(sharded: ShardedFeatures) -> None:
    keys = sharded.keys.copy()
    keys[[3, 9]], keys[61] = keys[0], keys[60]
    pairs = found(replace(sharded, keys=keys), most=0)
    assert pairs["duplicate"] == ("/d/0.jpg = /d/3.jpg", "/d/0.jpg = /d/9.jpg")
    assert pairs["conflicting-labels"] == ("/d/60.jpg = /d/61.jpg",)


def test_the_size_of_the_sample_is_stated_and_images_outside_are_not_judged(sharded: ShardedFeatures) -> None:
    wrong = relabelled(sharded, list(range(0, COUNT, 24)))
    findings = shard_findings(wrong, 24.0, seed=0, most_checked=120, progress=SilentProgress())
    (finding,) = [finding for finding in findings if finding.kind == "wrong-label"]
    assert finding.message.endswith(
        " of 120 labels are probably wrong (120 of 240 images, drawn by content, were checked)"
    )
    kept = set(sharded.paths(sharded.first_by_content(np.ones(COUNT, dtype=bool), 120)))
    named = {path for paths in finding.images for path in paths}
    assert named <= kept & {f"/d/{i}.jpg" for i in range(0, COUNT, 24)}
    assert 0 < len(named) < 10
    assert found(wrong, most=0) == {}


def test_a_copy_with_the_same_wrong_label_does_not_defend_it(
    sharded: ShardedFeatures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def inspect(*_: object, together: np.ndarray | None, **__: object) -> list[object]:
        seen.append(together)
        return []

    monkeypatch.setattr("headstart.distributed.shard_findings.inspect_features", inspect)
    keys = sharded.keys.copy()
    keys[200] = keys[5]
    found(replace(sharded, keys=keys))
    found(replace(sharded, groups=("g", "g", *[""] * (COUNT - 2))))
    found(sharded)
    assert len(set(seen[0].tolist())) == len(set(seen[1].tolist())) == COUNT - 1
    assert seen[0][200] == seen[0][5]
    assert seen[1][0] == seen[1][1]
    assert seen[2] is None
