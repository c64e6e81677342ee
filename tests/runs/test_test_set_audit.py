"""Audit of the test set: each time that test images are scored is recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from random_images import COLOURS, write_classes, write_grouped_table
from recorded_progress import RecordedProgress

import headstart as hs
from headstart.runs.test_set_audit import AuditEntry, audit_text, read_audit, record_test_score

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, hs.Run]:
    """A table with groups, and a run on it."""
    folder = tmp_path_factory.mktemp("grouped")
    table = write_grouped_table(folder)
    return folder, hs.train(table, out=folder / "run", image_size=64, val=0.35, test=0.3, seed=1)


def test_the_audit_in_words() -> None:
    uses = [AuditEntry(f"2026-11-2{i}T10:00:00+00:00", "evaluate", 5, 4) for i in range(4)]
    assert audit_text([]) == ""
    assert audit_text(uses[:1]) == "Test was scored once (evaluate 2026-11-20)"
    assert "4 times (most recently: evaluate 2026-11-21" in audit_text(uses)


@pytest.mark.exhaustive
def test_each_score_of_the_test_images_is_recorded(grouped: tuple[Path, hs.Run], tmp_path: Path) -> None:
    folder, run = grouped
    copy = shutil.copytree(run.folder, tmp_path / "run")
    (copy / "test_uses.jsonl").unlink()
    record_test_score(copy, "train", images=run.results["test"].count, correct=run.results["test"].correct)
    progress = RecordedProgress()

    hs.evaluate(copy, progress=progress)
    assert any(line.startswith("Test was scored once (train") for line in progress.said)
    hs.evaluate(copy, folder / "t.csv")
    uses = read_audit(copy)
    assert [use.by for use in uses] == ["train", "evaluate", "evaluate"]
    assert {use.images for use in uses} == {run.results["test"].count}
    assert {use.correct for use in uses} == {run.results["test"].correct}
    assert "Test was scored 3 times" in hs.report(copy).read_text()
    write_classes(tmp_path / "other", dict.fromkeys(COLOURS, 3), first_seed=900)
    hs.evaluate(copy, tmp_path / "other")  # no image of test
    assert len(read_audit(copy)) == 3
    assert read_audit(run.folder)[0].by == "train"
