"""Runs in which a tensor is altered while it must be frozen, and runs with short reports."""

from __future__ import annotations

from typing import Any

import pytest

from headstart.pipeline import train, train_rung, write
from headstart.training.finetune import fine_tune
from headstart.training.training_step import TrainingStep


def alter_in_training(monkeypatch: pytest.MonkeyPatch, name: str, *, at: int) -> None:
    """From the ``at``-th training on (the folds come first) a tensor is changed at the first step."""
    calls = 0

    def tune(split: Any, *given: Any, on_step: Any = None, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls

        def alter(done: TrainingStep) -> None:
            if mine == at and done.step == 1:
                split.module.state_dict()[name].add_(1)
            if on_step is not None:
                on_step(done)

        return fine_tune(split, *given, on_step=alter, **named)

    monkeypatch.setattr(train_rung, "fine_tune", tune)


def write_brief_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without map and heat maps."""
    report = write.write_report
    monkeypatch.setattr(train, "map_images", lambda *_given: None)
    monkeypatch.setattr(write, "write_report", lambda *given, **named: report(*given, **named | {"brief": True}))
