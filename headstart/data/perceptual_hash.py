"""Perceptual hash (pHash): 64 bits that stay similar when an image is resized or compressed again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from headstart.import_effects import import_quietly

SIDE = 32
"""Pixels per side of the grey image that is transformed."""

FREQUENCIES = 8
"""Lowest frequencies per axis that give a bit each."""


def perceptual_hash(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Whether each of the lowest frequencies of an image is above their median.

    The bits equal those of ``imagehash.phash``.

    Args:
        image: RGB or grey, of any size.

    Returns:
        (8, 8) bool.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    dct = import_quietly("scipy.fft").dct  # scans alone need it
    low = dct(dct(grey, axis=0), axis=1)[:FREQUENCIES, :FREQUENCIES]
    return np.asarray(low > np.median(low))
