"""Response models of the API (pydantic)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from headstart.model import Model
from headstart.prediction import Prediction
from headstart.serve.responses import prediction_entry


class ErrorDetail(BaseModel):
    """Description of an error."""

    status: int = Field(description="HTTP status of the response.", examples=[413])
    code: str = Field(description="Identifier of the status, for programs.", examples=["too_large"])
    reason: str = Field(description="What was found, what was expected and what to do.")


class ErrorResponse(BaseModel):
    """Body of every error response."""

    error: ErrorDetail


class LabelProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class ImagePrediction(BaseModel):
    """Prediction for one image, or the reason why there is none."""

    name: str = Field(description="File name of the image, as it was sent.")
    label: str | None = Field(description="Most probable class; null if the image cannot be read.")
    probability: float | None = Field(description="Probability of that class.", ge=0, le=1)
    answer: str | None = Field(
        description='The label, or "none of these" (out-of-distribution), or "unsure: ask a person" (too low a '
        'probability). For multi-label models "none of these" or ""; the labels are in "labels".'
    )
    none_of_these: bool = Field(description="Whether the image is flagged as out-of-distribution.")
    unsure: bool = Field(description="Whether the probability is too low for the requested accuracy.")
    outlier: float | None = Field(
        description="Out-of-distribution score: share of in-distribution images that are closer to the training "
        "images; null if the model has no detector.",
        ge=0,
        le=1,
    )
    labels: list[LabelProbability] | None = Field(
        description="Predicted labels, most probable first; null unless the model is multi-label."
    )
    probabilities: list[LabelProbability] = Field(description="Classes and probabilities, most probable first.")
    error: str | None = Field(description="Why the image cannot be read.")


class PredictResponse(BaseModel):
    """Predictions for the images of a request, in their order."""

    version: str = Field(description="SHA-256 of the model.")
    predictions: list[ImagePrediction]


def image_prediction(prediction: Prediction, *, top: int | None = None) -> ImagePrediction:
    """Response model of one prediction.

    Args:
        prediction: prediction with all classes.
        top: number of classes to list; None for all.
    """
    return ImagePrediction(**prediction_entry(prediction, top=top))


class ModelInfo(BaseModel):
    """Metadata of the model."""

    version: str = Field(description="SHA-256 of the model.")
    classes: list[str] = Field(description="Class names, in natural order.")
    multi_label: bool = Field(description="Whether an image may have any number of labels.")
    thresholds: list[float] | None = Field(
        description="Decision thresholds of a multi-label model, in the order of the classes."
    )
    backbone: str = Field(description="Architecture of the backbone.")
    preprocessing: dict[str, Any] = Field(description="Size, crop, interpolation and normalisation of the input.")
    fit: str = Field(description="How an image is fitted into the input, in words.")
    calibrated: bool = Field(description="Whether the probabilities are calibrated.")
    calibration: str = Field(description="How the probabilities were calibrated, or why they are not.")
    detects_out_of_distribution: bool = Field(description='Whether the model can answer "none of these".')
    scores: dict[str, Any] = Field(description="Scores by split, with 95 % confidence intervals.")
    engine: str | None = Field(description="Inference engine; null until it is warmed up.")


def model_info(model: Model, *, engine: str | None) -> ModelInfo:
    """Metadata of a model.

    Args:
        model: the classifier.
        engine: name of its inference engine; None if none has been chosen yet.
    """
    preprocessing = model.preprocessing
    return ModelInfo(
        version=model.version,
        classes=list(model.classes),
        multi_label=model.thresholds is not None,
        thresholds=None if model.thresholds is None else list(model.thresholds),
        backbone=model.net.backbone.architecture,
        preprocessing=preprocessing.pixel_key() | {"mean": preprocessing.mean, "std": preprocessing.std},
        fit=preprocessing.sentence,
        calibrated=model.calibration.images > 0,
        calibration=model.calibration_text,
        detects_out_of_distribution=model.ood_detector is not None,
        scores=model.scores,
        engine=engine,
    )
