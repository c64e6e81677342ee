"""Trial of the trained model: predictions for images that are dropped on the page, and their corrections."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, final

from headstart.errors import OptionError
from headstart.model import Model, load
from headstart.serve.corrections import Correction, Corrections
from headstart.serve.schemas import image_prediction


@final
class Trial:
    """Classifies images by the model of the last finished run, which is loaded when it is first needed.

    Args:
        corrections: folder for images that the model classified wrongly.
        device: see ``device.resolve_device``.
    """

    def __init__(self, corrections: Path, device: str = "auto") -> None:
        self.corrections = Corrections(corrections)
        self.device = device
        self._lock = threading.Lock()
        self._loaded: tuple[Path, Model] | None = None

    def predict(self, run: Path | None, data: bytes, name: str) -> dict[str, Any]:
        """Prediction for the bytes of one image, as in the API of ``headstart serve``.

        Raises:
            OptionError: no run has finished yet.
        """
        if run is None:
            raise OptionError("There is no trained model yet. Train one first.")
        with self._lock:
            if self._loaded is None or self._loaded[0] != run:
                self._loaded = run, load(run)
            prediction = self._loaded[1].predict(data, device=self.device)
        return image_prediction(prediction).model_dump() | {"name": name}

    def keep(self, data: bytes, label: str) -> Correction:
        """Stores an image with its correct label in the folder of corrections.

        Raises:
            OptionError: the label cannot be a folder name.
            UnreadableImage: the image cannot be decoded.
            OutputError: the folder cannot be written.
        """
        return self.corrections.keep(data, label)
