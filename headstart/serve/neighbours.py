"""The training pictures that a picture is most like, as far as the model file remembers them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from headstart.data.decode import Rgb
from headstart.errors import OptionError
from headstart.files import read_rows
from headstart.model import Model
from headstart.trust.ood import MAX_REFERENCES, MAX_REFERENCES_FINE_TUNED, choose_references


@dataclass(frozen=True)
class Neighbour:
    """A training picture.

    Attributes:
        path: of its file, which may be gone.
        label: that it was learnt under.
        similarity: cosine of the features, strong ones cut off; 1 of the same picture.
    """

    path: str
    label: str
    similarity: float


@final
class Neighbours:
    """Training pictures of a run, and their features in its model file.

    The file keeps the features of a sample, drawn by content; which images these are follows from the run's table.

    Args:
        model: of the run.
        run: its folder.

    Raises:
        OptionError: the model keeps none, or the table is not that of its training.

    Attributes:
        of: training images of the run.
        rows: path and label of those whose features are kept.
    """

    def __init__(self, model: Model, run: Path) -> None:
        self.model = model
        if model.ood_detector is None:
            raise OptionError("This model keeps no training pictures: it was trained on too few, or extends another.")
        try:
            table = [row for row in read_rows(run / "split.csv") if row["split"] == "train"]
            keys = [bytes.fromhex(row["content"]) for row in table]
            labels = [row["labels" if "labels" in row else "label"].strip("|").replace("|", ", ") for row in table]
        except (OSError, KeyError, ValueError) as error:
            raise OptionError(f"{run}: its table of images cannot be read ({error}).") from error
        kept, length = model.ood_detector.references.shape
        picked = (choose_references(keys, length, most) for most in (MAX_REFERENCES, MAX_REFERENCES_FINE_TUNED))
        places = next((own for own in picked if len(own) == kept), None)
        if places is None:
            raise OptionError(f"{run}: its table of images is not that of the model.")
        self.of = len(table)
        self.rows = [(table[i]["path"], labels[i]) for i in places]

    def nearest(self, pixels: Rgb, count: int) -> list[Neighbour]:
        """Those that are most like a picture, the nearest first.

        Args:
            pixels: as the network sees it, see ``Model.pixels``.
            count: of them.
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
