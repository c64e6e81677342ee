"""Step 8 of a run: the proof that nothing frozen changed."""

from __future__ import annotations

from typing import Any

from torch import nn

from headstart.engine.plan import EnginePlan
from headstart.pipeline.base_classifier import BaseClassifier, kept_tensors
from headstart.pipeline.ladder_state import FineTuned
from headstart.pipeline.load import Job, Loaded
from headstart.training.frozen_proof import Digests, combined, digests_of, require_unchanged, tensors_of


def frozen_digests(
    job: Job, loaded: Loaded, base: BaseClassifier | None = None, head: nn.Module | None = None
) -> Digests:
    """Digests of the backbone that runs the frozen pass, and of the old classes where a model is extended.

    Args:
        job: its recipe says whether old classes are frozen too.
        loaded: the backbone.
        base: the classifier that is extended, if one is.
        head: of the finished model; that of the base classifier if None.
    """
    digests = digests_of(tensors_of(loaded.backbone.module))
    if base is not None and not job.recipe.train_old_classes:
        digests |= digests_of(kept_tensors(base, base.head if head is None else head))
    return digests


def prove_frozen(
    before: Digests, after: Digests, engines: EnginePlan, tuned: FineTuned | None = None
) -> dict[str, Any]:
    """Compares what was frozen before and after training.

    Args:
        before: digests when the run began.
        after: digests of the same tensors now.
        engines: that ran the frozen pass.
        tuned: the outcome of fine-tuning.

    Returns:
        A JSON document for ``run.json``: both digests, the number of the backbone's weights that were trained (of
        low-rank updates: that were trained for it) and that changed, and the engines.

    Raises:
        TrainingError: a frozen tensor changed.
    """
    require_unchanged(before, after, where="the frozen pass")
    if tuned is not None and tuned.num_trained:
        before, after = tuned.before, tuned.frozen
    return {
        "frozen_before": combined(before),
        "frozen_after": combined(after),
        "trained_weights": tuned.num_trained if tuned else 0,
        "changed_weights": tuned.num_changed if tuned else 0,
        "engine_exact": engines.reason(exact=True),
        "engine_fast": engines.reason(exact=False),
    }
