"""Model card in the format of the Hugging Face hub: usage, metrics, training and limits of a model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, Template

from headstart.backbone.licenses import license_text
from headstart.backbone.side_by_side import member_names
from headstart.concurrency import ignored_warnings
from headstart.evaluation.metrics import (
    CROSS_VALIDATION,
    AnyScores,
    LabelScores,
    class_figures,
    share_words,
    shown_first,
)
from headstart.figures import share_text
from headstart.model import Model
from headstart.model_file import MODEL_FILE
from headstart.prediction import INLIER_SHARE, NONE_OF_THESE, UNSURE
from headstart.training.recipe import Recipe

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"

LISTED_CLASSES = 50
"""Maximum number of classes that the card lists."""

_CONSTANTS = {"listed": LISTED_CLASSES, "unsure": UNSURE, "stranger": NONE_OF_THESE, "kept": INLIER_SHARE}


def model_card(
    model: Model,
    results: Mapping[str, AnyScores],
    document: Mapping[str, Any],
    repository: str = "",
    *,
    selection: Mapping[str, Any] | None = None,
    other_programs: str = "",
) -> str:
    """Renders the model card as Markdown with the metadata of the hub in front matter.

    Args:
        model: the classifier.
        results: scores by set; the last one is the main result.
        document: content of ``run.json``, see ``runs.results.run_document``.
        repository: "OWNER/NAME" on the hub; "" if unknown.
        selection: how the backbone was chosen, see ``selection.results.Selection.as_json``; None if it was given.
        other_programs: how other libraries load the repository, as Markdown; "" if they cannot.
    """
    from huggingface_hub import ModelCard

    name, backbone = document["data"]["name"], model.net.backbone
    default = Recipe().as_json()
    with ignored_warnings():
        text = _template().render(
            card_data=_metadata(model, results, name, ["transformers"] if other_programs else []),
            model=model,
            name=name,
            data=document["data"],
            results=list(results.values()),
            scores=shown_first(results),
            figures=class_figures(shown_first(results)),
            share=share_words,
            interval=share_text,
            is_multi_label=model.thresholds is not None,
            backbone=backbone,
            weights=sum(weight.numel() for weight in model.net.body.parameters()),
            selection=selection,
            other_programs=other_programs.rstrip(),
            license=license_text(backbone.license),
            chosen={k: v for k, v in model.recipe.without_paths().as_json().items() if v != default[k]},
            frozen=document["frozen"],
            best=document["best"],
            serious=[f["message"] for f in document["findings"] if f["severity"] == "serious"],
            address=f"hf://{repository}" if repository else MODEL_FILE,
            **_CONSTANTS,
            usual=document.get("calibration", {}).get("usual", ""),
        )
        return str(ModelCard(text).content) + "\n"


def _metadata(model: Model, results: Mapping[str, AnyScores], name: str, more_tags: list[str]) -> str:
    """The metadata of the hub, as YAML."""
    from huggingface_hub import ModelCardData

    members = member_names(model.net.backbone.architecture)
    metadata = ModelCardData(
        library_name="headstart",
        pipeline_tag="image-classification",
        tags=["headstart", "image-classification", "transfer-learning", "timm", *more_tags],
        base_model=None if model.recipe.scratch else [f"timm/{member}" for member in members],
        metrics=["accuracy"],
        model_name=name,
        eval_results=_eval_results(name, results) or None,
    )
    return str(metadata.to_yaml())


@cache
def _template() -> Template:
    """Compiled once: ``ModelCard.from_template`` compiles it for each card."""
    return Environment().from_string(
        (Path(__file__).parent / "templates" / "model_card.md").read_text(encoding="utf-8")
    )


def _eval_results(name: str, results: Mapping[str, AnyScores]) -> list[EvalResult]:
    """Metrics on held-out images in the format of the hub."""
    from huggingface_hub import EvalResult

    held_out = ("val", "test") if CROSS_VALIDATION not in results else (CROSS_VALIDATION,)
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=_slug(name),
            dataset_name=name,
            dataset_split=split,
            metric_type="mAP" if isinstance(scores, LabelScores) else "accuracy",
            metric_value=round(
                scores.mean_average_precision if isinstance(scores, LabelScores) else scores.accuracy, 4
            ),
            metric_name=scores.sentence,
        )
        for split, scores in results.items()
        if split in held_out
    ]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "data"
