"""The JSON documents of the API."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from headstart.model import Model
from headstart.prediction import NONE_OF_THESE, Prediction


class LabelChance(BaseModel):
    """A class and its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class PictureAnswer(BaseModel):
    """What is said of one picture, or why nothing is."""

    name: str = Field(description="As it was sent.")
    label: str | None = Field(description="The most probable class; null where the picture cannot be read.")
    probability: float | None = Field(description="Of that class.", ge=0, le=1)
    answer: str | None = Field(
        description='What can be relied on: the label, "none of these", "unsure: ask a person"; of a model that gives '
        'any number of labels "none of these" or "", beside "labels".'
    )
    none_of_these: bool = Field(description="Whether the picture is unlike all that the model learnt from.")
    unsure: bool = Field(description="Whether the probability is too low for the accuracy that was asked for.")
    outlier: float | None = Field(
        description="Share of usual pictures that are nearer to what was learnt; null where the model does not know.",
        ge=0,
        le=1,
    )
    labels: list[LabelChance] | None = Field(
        description="The labels that are given, the surest first; null of a model that gives each picture one class."
    )
    probabilities: list[LabelChance] = Field(description="Of the classes, best first.")
    error: str | None = Field(description="Why the picture cannot be read.")


class Answer(BaseModel):
    """What is said of the pictures of a request, in their order."""

    version: str = Field(description="SHA-256 of the model.")
    predictions: list[PictureAnswer]


def picture_answer(prediction: Prediction, *, top: int | None = None) -> PictureAnswer:
    """The document of one prediction.

    Args:
        prediction: with all classes.
        top: classes to list; None for all.
    """
    read = prediction.label is not None
    return PictureAnswer(
        name=prediction.path,
        label=prediction.label,
        probability=prediction.probability if read else None,
        answer=prediction.answer,
        none_of_these=prediction.answer == NONE_OF_THESE,
        unsure=prediction.unsure,
        outlier=prediction.outlier,
        labels=None if prediction.labels is None else _chances(prediction.labels),
        probabilities=_chances(prediction.top[:top]),
        error=prediction.error,
    )


def _chances(ranked: tuple[tuple[str, float], ...]) -> list[LabelChance]:
    return [LabelChance(label=label, probability=chance) for label, chance in ranked]


class ModelDocument(BaseModel):
    """What answers."""

    version: str = Field(description="SHA-256 of the model.")
    classes: list[str] = Field(description="Their names, in natural order.")
    several_labels: bool = Field(description="Whether a picture may bear any number of labels.")
    thresholds: list[float] | None = Field(description="Of the labels, in the order of the classes.")
    backbone: str
    preprocessing: dict[str, Any]
    calibrated: bool = Field(description="Whether its probabilities are calibrated.")
    calibration: str = Field(
        description="What was fitted on images that it did not learn from, or why nothing was, in words."
    )
    knows_strangers: bool = Field(description='Whether it can say "none of these".')
    scores: dict[str, Any] = Field(description="What it scored, by the name of the set, with 95 % intervals.")
    engine: str | None = Field(description="What runs it; null until it is warmed up.")


def model_document(model: Model, *, engine: str | None) -> ModelDocument:
    """The document of a model."""
    own = model.preprocessing
    return ModelDocument(
        version=model.version,
        classes=list(model.classes),
        several_labels=model.thresholds is not None,
        thresholds=None if model.thresholds is None else list(model.thresholds),
        backbone=model.net.backbone.architecture,
        preprocessing=own.pixel_key() | {"mean": own.mean, "std": own.std},
        calibrated=model.calibration.images > 0,
        calibration=model.calibration_text,
        knows_strangers=model.ood_detector is not None,
        scores=model.scores,
        engine=engine,
    )
