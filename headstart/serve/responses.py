"""Response to a prediction request, as a JSON document; ``schemas`` describes it for OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..prediction import NONE_OF_THESE, Prediction

MAX_NAME_LENGTH: Final = 255
"""Maximum length of an image's file name in the response, in characters."""


def prediction_entry(prediction: Prediction, *, top: int | None = None) -> dict[str, Any]:
    """The entry of one image, see ``schemas.ImagePrediction``.

    Args:
        prediction: prediction with all classes.
        top: number of classes to list; None for all.
    """
    return {
        "name": prediction.path,
        "label": prediction.label,
        "probability": None if prediction.label is None else prediction.probability,
        "answer": prediction.answer,
        "none_of_these": prediction.answer == NONE_OF_THESE,
        "unsure": prediction.unsure,
        "outlier": prediction.outlier,
        "labels": None if prediction.labels is None else _pairs(prediction.labels),
        "probabilities": _pairs(prediction.top[:top]),
        "error": prediction.error,
    }


def _pairs(ranked: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": probability} for label, probability in ranked]


def printable_name(name: str) -> str:
    """A file name that can be encoded as JSON, cut to ``MAX_NAME_LENGTH``."""
    return name.encode(errors="backslashreplace").decode()[:MAX_NAME_LENGTH]
