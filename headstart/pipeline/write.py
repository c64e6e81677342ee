"""Step 9 of a run: the run folder is written, its manifest last."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.files import writing_run
from headstart.pipeline.evaluate import EvaluatedModel
from headstart.pipeline.featurise import Featurised, image_vectors
from headstart.pipeline.inspect_images import Inspected
from headstart.pipeline.ladder_state import CHECKPOINTS, CURRENT
from headstart.pipeline.load import Job, Loaded
from headstart.reports.image_map import ImageMap, make_map
from headstart.runs.folder import Run, seal
from headstart.runs.results import collect_results, write_results
from headstart.runs.test_set_audit import AUDIT_FILE, record_test_score
from headstart.training.fit_head import Fitted
from headstart.verbs.report import write_card, write_report


@dataclass(frozen=True)
class RunDocuments:
    """Contents of a run folder other than figures.

    Attributes:
        fitted: the head on frozen features.
        inspected: the images.
        image_map: of all images; None for none.
        rehearsal: table of the rehearsal images, where a model was extended.
        proof: see ``prove_frozen``.
        is_brief: whether the report has neither map nor Grad-CAM.
        cache: the cache folder.
    """

    fitted: Fitted
    inspected: Inspected
    image_map: ImageMap | None
    rehearsal: str
    proof: dict[str, Any]
    is_brief: bool
    cache: Path | None


def map_images(job: Job, loaded: Loaded, inspected: Inspected, featurised: Featurised) -> ImageMap | None:
    """A map of all images by their frozen features."""
    images = image_vectors(loaded, inspected, featurised)
    files, names = inspected.dataset.files(), inspected.dataset.label_names()
    paths, labels = [files[i] for i in images.positions], [names[i] for i in images.positions]
    with job.progress.task("Drawing the map of images", 1, "steps"):
        return make_map(paths, images.splits, labels, images.vectors, seed=job.recipe.seed, cache=job.cache)


def write_files(run: Run, finished: EvaluatedModel, documents: RunDocuments) -> dict[str, Any]:
    """Writes everything but ``run.json``, whose document is returned.

    Args:
        run: the figures.
        finished: the model and its predictions.
        documents: the rest.

    Raises:
        WriteError: the folder cannot be written.
    """
    folder, model = run.folder, finished.model
    results = collect_results(
        run,
        model,
        documents.fitted,
        documents.inspected.inspection,
        finished.evaluated,
        documents.proof,
        image_map=documents.image_map,
        rehearsal=documents.rehearsal,
    )
    document = write_results(results)
    with writing_run(folder):
        (folder / AUDIT_FILE).unlink(missing_ok=True)  # a resumed run looks at the test images once, too
    for part in finished.evaluated:
        if part.scores.name == "test":
            record_test_score(folder, "train", images=part.scores.count, correct=part.scores.correct)
    write_report(folder, document, model, run.report_path, brief=documents.is_brief, cache=documents.cache)
    write_card(folder, document, model)
    return document


def finish(run: Run, document: dict[str, Any]) -> None:
    """Writes ``run.json``, which makes the run complete, and removes the checkpoint of the rung under way.

    Raises:
        WriteError: the folder cannot be written.
    """
    seal(run.folder, document)
    with contextlib.suppress(OSError):
        (run.folder / CHECKPOINTS / CURRENT).unlink(missing_ok=True)
