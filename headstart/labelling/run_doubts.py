"""Labels that a trained run contradicts: its predictions for images that it was not trained on differ from them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from headstart.data.label_cells import SEPARATOR
from headstart.files import read_rows
from headstart.runs.folder import CROSS_VALIDATION_FILE, PREDICTIONS_FILE


@dataclass(frozen=True)
class ContradictedLabel:
    """A label that differs from the prediction of a trained run.

    Attributes:
        path: of the image, as in the labels table.
        labels: that the run was given.
        predicted: the class that the run predicts; with several labels one that it adds, or else one that it misses.
        probability: of that class, 0-1.
    """

    path: str
    labels: tuple[str, ...]
    predicted: str
    probability: float

    @property
    def disagreement(self) -> float:
        """How certain the run is that the label is wrong, 0-1."""
        return 1 - self.probability if self.predicted in self.labels else self.probability


def contradicted_labels(run: Path) -> list[ContradictedLabel]:
    """Labels that the predictions of a run for val and in cross-validation contradict, most certain ones first.

    Images of the test set are left out: labels of a test set that were changed to what the model says would flatter it.

    Args:
        run: folder of a finished run; one without readable predictions contradicts nothing.
    """
    found: dict[str, ContradictedLabel] = {}
    for name in (CROSS_VALIDATION_FILE, PREDICTIONS_FILE):  # the trained model last: it counts if both have an image
        with contextlib.suppress(OSError, KeyError, ValueError):
            for row in read_rows(run / name):
                if row["split"] != "test":
                    found.pop(row["path"], None)
                    if (one := _contradicted(row)) is not None:
                        found[one.path] = one
    return sorted(found.values(), key=lambda one: (-one.disagreement, one.path))


def _contradicted(row: dict[str, str]) -> ContradictedLabel | None:
    multi_label = "labels" in row
    given, predicted = (
        tuple(name for name in (row[column].split(SEPARATOR) if multi_label else [row[column]]) if name)
        for column in ("labels" if multi_label else "label", "predicted")
    )
    different = [name for name in predicted if name not in given] or [name for name in given if name not in predicted]
    if not different:
        return None
    return ContradictedLabel(row["path"], given, different[0], float(row[f"p:{different[0]}"]))
