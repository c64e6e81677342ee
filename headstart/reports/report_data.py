"""Input data of the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headstart.data.finding import Finding
from headstart.evaluation.predictions import Evaluated
from headstart.model import Model
from headstart.reports.curves import CurvePoint
from headstart.reports.image_map import ImageMap
from headstart.training.ladder import RungResult

MAX_MISTAKES = 24
"""Maximum number of mistakes shown per evaluated set."""


@dataclass(frozen=True)
class ReportData:
    """Contents of a run folder that the report shows.

    Attributes:
        name: name of the data set.
        base: path or URL of the folder of the data; paths are shown relative to it.
        model: the finished classifier.
        head: name of the head, the reason for its settings ("reason"), and its number of frozen weights ("frozen").
        counts: split -> class -> number of images.
        sizes: split -> number of images.
        split_origin: where the split comes from, see ``data.splits.Split.origin``.
        fingerprint: SHA-256 of the training images and their labels.
        findings: findings of the data check.
        evaluated: predictions by evaluated set.
        rungs: results of the ladder; empty without fine-tuning.
        best: name of the rung that was kept.
        curves: metrics of each epoch; empty if nothing was trained by gradient descent.
        image_map: the image map; None if the run has none.
        is_brief: omit Grad-CAM, and show images of mistakes and findings only.
        test_audit: sentence about earlier evaluations on the test set; "" for none.
        proof: hashes of the frozen weights before and after training, and the engines.
        seconds: duration by step.
        selection: how the backbone was chosen, see ``selection.search.Selection.as_json``; None if it was given.
        exports: files for other programs, see ``verbs.export_table.ExportTable.as_json``; None if there are none.
    """

    name: str
    base: str
    model: Model
    head: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]
    split_origin: str
    fingerprint: str
    findings: Sequence[Finding]
    evaluated: Sequence[Evaluated]
    rungs: Sequence[RungResult]
    best: str
    curves: Sequence[CurvePoint]
    image_map: ImageMap | None
    is_brief: bool
    test_audit: str
    proof: Mapping[str, Any]
    seconds: Mapping[str, float]
    selection: Mapping[str, Any] | None = None
    exports: Mapping[str, Any] | None = None

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.model.thresholds is not None

    @property
    def is_cross_validated(self) -> bool:
        """Whether rungs were also evaluated by cross-validation on training images, because val is small."""
        return bool(self.rungs) and self.rungs[0].count > self.sizes.get("val", 0)

    @cached_property
    def shown_mistakes(self) -> list[list[int]]:
        """Positions of the shown mistakes, for each of ``evaluated``."""
        return [part.mistakes()[:MAX_MISTAKES] for part in self.evaluated]

    @cached_property
    def nearest(self) -> Mapping[str, tuple[str, ...]]:
        """Path of an image -> paths of its nearest training images; empty without a map."""
        return {} if self.image_map is None else dict(zip(self.image_map.paths, self.image_map.nearest, strict=True))
