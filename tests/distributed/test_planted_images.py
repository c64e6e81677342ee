"""Damaged, missing and duplicate images among thousands are all named, and nothing else is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_is_planted_is_named_and_nothing_else_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import planted_images

    monkeypatch.setattr(planted_images, "IN_A_TAR", 500)
    monkeypatch.setattr("headstart.data.duplicates.SEARCHED_BY_BANDS", 1000)
    monkeypatch.setattr("headstart.data.natural_order.RowSpool.__init__.__kwdefaults__", {"run_rows": 700})
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    planted = planted_images.plant(tmp_path, 3000)
    assert (len(planted.good), len(planted.bad), len(planted.copies)) == (2992, 8, 200)
    assert planted_images.extract(planted, tmp_path / "features", 2) == []
    assert planted_images.check(planted) == []
    other = sorted(planted.good)[0]
    wrong = replace(planted, good=planted.good - {other}, bad=planted.bad | {other})
    assert len(planted_images.extract(wrong, tmp_path / "features", 2)) == 2  # nothing is computed again
    assert planted_images.check(wrong) == [f"not named, or wrongly: {other}"]
