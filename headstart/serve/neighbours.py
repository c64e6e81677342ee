"""Nearest neighbours: the training images whose features are most similar to those of an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from headstart.data.preprocessing import Rgb
from headstart.errors import OptionError
from headstart.files import read_rows
from headstart.model import Model
from headstart.trust.ood import MAX_REFERENCES, MAX_REFERENCES_FINE_TUNED, choose_references


@dataclass(frozen=True)
class Neighbour:
    """A training image.

    Attributes:
        path: path of the file, which may have been deleted.
        label: its label in training.
        similarity: cosine similarity of the clipped features, 0 to 1; 1 for the same image.
    """

    path: str
    label: str
    similarity: float


@final
class Neighbours:
    """Reference images of a model: a sample of its training images whose features are stored in the model file.

    The sample is drawn by content hash, so the table of images in the run folder identifies its images.

    Args:
        model: classifier of the run.
        run: run folder.

    Raises:
        OptionError: the model file stores no features, or the table does not belong to the model.

    Attributes:
        num_training_images: number of training images of the run.
        rows: path and label of each reference image.
    """

    def __init__(self, model: Model, run: Path) -> None:
        self.model = model
        if model.ood_detector is None:
            raise OptionError(
                "The model file stores no reference features: it has too few training images, or extends a model."
            )
        try:
            table = [row for row in read_rows(run / "split.csv") if row["split"] == "train"]
            keys = [bytes.fromhex(row["content"]) for row in table]
            labels = [row["labels" if "labels" in row else "label"].strip("|").replace("|", ", ") for row in table]
        except (OSError, KeyError, ValueError) as error:
            raise OptionError(f"{run / 'split.csv'}: cannot be read ({error}).") from error
        kept, length = model.ood_detector.references.shape
        picked = (choose_references(keys, length, most) for most in (MAX_REFERENCES, MAX_REFERENCES_FINE_TUNED))
        places = next((indices for indices in picked if len(indices) == kept), None)
        if places is None:
            raise OptionError(f"{run / 'split.csv'}: does not belong to the model.")
        self.num_training_images = len(table)
        self.rows = [(table[i]["path"], labels[i]) for i in places]

    def nearest(self, pixels: Rgb, count: int) -> list[Neighbour]:
        """The most similar reference images, most similar first.

        Args:
            pixels: network input of an image, H x W x 3, uint8; see ``Model.preprocess``.
            count: number of images.
        """
        model = self.model
        assert model.ood_detector is not None
        net = model.net
        with torch.inference_mode():
            features = net(torch.from_numpy(pixels[None].copy()).to(net.scale.device)).float().cpu().numpy()
        cosines = model.ood_detector.similarities(model.embed(features))[0]
        best = np.argsort(-cosines, kind="stable")[:count]
        found = [(*self.rows[i], float(np.clip(cosines[i], 0, 1))) for i in best]
        return [Neighbour(path, label, similarity) for path, label, similarity in found]
