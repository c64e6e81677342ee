"""Data augmentation: seeded views of an image, each a pure function of image, view number and seed.

Views look like what prediction sees. Where images are cropped to their center, a view is a crop of the network's aspect
ratio. Where the whole image is shown (crop modes "squash" and "border"), a view is a part of it, enlarged to the place
of the whole in the input: it is distorted as much, or has the same padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart.data.decode import decode
from headstart.data.preprocessing import Preprocessing, Rgb, crop_or_pad, shown_size
from headstart.errors import OptionError

AUGMENT_VERSION = 2
"""Incremented whenever ``view`` gives other pixels; part of every cache key (``Augmentation.describe``)."""

SHRINKS_FROM = 1.1
"""Input pixels per output pixel above which a crop is downsampled with antialiasing before it is rotated."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

_LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey (ITU-R 601-2, as in Pillow's mode "L")."""


@dataclass(frozen=True)
class Augmentation:
    """Parameters of augmentation.

    Attributes:
        flip: whether half of the views are flipped horizontally; False if left and right matter.
        scale: (low, high) share of the image's area that the crop keeps, uniform, 0 < low <= high <= 1. It keeps less
            if a rotated crop of an allowed ratio does not fit into the image.
        ratio: (low, high) width / height of the crop, log-uniform: relative to that of the network's input, or to that
            of the image where the whole image is shown.
        rotate: largest rotation angle in degrees to either side, uniform, 0-180. In a padded image it is less by the
            share of the input that the image fills, so that a wide image need not be cut further than a square one.
        colour: brightness, contrast and saturation are each multiplied by a factor that is uniform in
            [1 - colour, 1 + colour], 0 <= colour < 1; 0: unchanged.

    Raises:
        OptionError: a value is out of range.

    Source: torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip``, ``RandomRotation`` and ``ColorJitter``.
    """

    flip: bool = True
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotate: float = 10.0
    colour: float = 0.2

    def __post_init__(self) -> None:
        _require_range("scale", self.scale, most=1.0)
        _require_range("ratio", self.ratio, most=math.inf)
        if not 0 <= self.rotate <= 180:
            raise OptionError(f"rotate {self.rotate}: expected 0 to 180 degrees.")
        if not 0 <= self.colour < 1:
            raise OptionError(f"colour {self.colour}: expected 0 or more and less than 1; 0 leaves colours unchanged.")

    def describe(self) -> dict[str, Any]:
        """The parameters as a JSON document, for a cache key."""
        return {"version": AUGMENT_VERSION} | asdict(self) | {"scale": list(self.scale), "ratio": list(self.ratio)}


def view(
    image: Image.Image,
    key: bytes,
    number: int,
    *,
    seed: int,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
) -> Rgb:
    """One view: random crop, resize, rotation, flip and colour jitter.

    The same arguments give the same bits in every thread and process. Rotation never fills corners: a view contains
    only pixels of the image, and with crop mode "border" bars as in ``preprocessing.resize_and_crop``.

    Args:
        image: mode RGB, upright, of any size.
        key: 16-byte content hash of the image file.
        number: number of the view.
        seed: of all views.
        augmentation: parameters.
        preprocessing: size and interpolation.

    Returns:
        (height, width, 3) uint8, 0-255.
    """
    random = _Random(key, number, seed)
    size = shown_size(image.size, preprocessing)
    filled = min(size[0] / preprocessing.width, size[1] / preprocessing.height)
    angle = math.radians(augmentation.rotate * (2 * random.angle - 1)) * filled
    flip = augmentation.flip and random.flip < 0.5
    frame = _frame(size, angle)
    drawn_on = image.size if preprocessing.crop_mode == "center" else size
    box = _scaled(_box(drawn_on, size, frame, random, augmentation), drawn_on, image.size)
    if angle and max((box[2] - box[0]) / frame[0], (box[3] - box[1]) / frame[1]) <= SHRINKS_FROM:
        image = _turn(image, box, size, frame, angle, flip=flip)
    else:
        image = image.resize(frame, Image.Resampling[preprocessing.interpolation.upper()], box=box, reducing_gap=2.0)
        if angle:
            image = _turn(image, (0, 0, *frame), size, frame, angle, flip=flip)
        elif flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop_or_pad(_recolour(image, random, augmentation.colour) if augmentation.colour else image, preprocessing)


def views(
    source: bytes | str | Path,
    key: bytes,
    numbers: Sequence[int],
    *,
    seed: int,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
) -> Rgb:
    """Several views of one file, which is decoded once, at the size that they need.

    Args:
        source: the file's bytes, or its path.
        key: 16-byte content hash of the file.
        numbers: numbers of N views.
        seed: as in ``view``.
        augmentation: as in ``view``.
        preprocessing: as in ``view``.

    Returns:
        (N, height, width, 3) uint8, 0-255.

    Raises:
        UnreadableImage: the file is not a usable image.
    """
    min_side = _decode_at_least(augmentation, preprocessing)
    image = decode(source, min_side=min_side, value_range=preprocessing.value_range).image
    excess = min(image.size) // min_side
    if excess > 1:  # not a JPEG, which ``decode`` has reduced, or one that is too large at 1/8
        image = image.reduce(excess)
    views = np.empty((len(numbers), preprocessing.height, preprocessing.width, 3), dtype=np.uint8)
    for row, number in zip(views, numbers, strict=True):
        row[...] = view(image, key, number, seed=seed, augmentation=augmentation, preprocessing=preprocessing)
    return views


def view_key(key: bytes, number: int) -> bytes:
    """16-byte cache key of a view; seed and augmentation are in the description of the cache."""
    return _digest(b"headstart row", key, number)


class _Random:
    """Nine random numbers in [0, 1) for one view. Each has a fixed place, so that no parameter affects another."""

    def __init__(self, key: bytes, number: int, seed: int) -> None:
        state = int.from_bytes(_digest(b"headstart view", key, number, seed), "little")
        draws = np.random.Generator(np.random.PCG64(state)).random(9).tolist()
        self.flip, self.scale, self.ratio, self.left, self.top, self.angle, *self.colour = draws


def _digest(purpose: bytes, key: bytes, *numbers: int) -> bytes:
    return blake2b(key + "".join(f"|{n}" for n in numbers).encode(), digest_size=16, person=purpose).digest()


def _decode_at_least(augmentation: Augmentation, preprocessing: Preprocessing) -> int:
    """Shorter side in pixels at which a crop of average scale is not enlarged."""
    share = sum(augmentation.scale) / 2
    side = max(preprocessing.height, preprocessing.width) / math.sqrt(share)
    return max(preprocessing.decode_at_least, math.ceil(side))


def _frame(size: tuple[int, int], angle: float) -> tuple[int, int]:
    """(width, height) of the upright bounding box of a rectangle of ``size`` rotated by ``angle``."""
    width, height = size
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    return math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos)


def _box(
    region: tuple[int, int],
    size: tuple[int, int],
    frame: tuple[int, int],
    random: _Random,
    augmentation: Augmentation,
) -> Box:
    """The bounding box of the crop, always inside the region: the image, or the resized whole image.

    torchvision tries ten crops and falls back to the center. Here the ratio is drawn from those that fit; if none fits,
    the largest crop with the nearest allowed ratio is used.
    """
    grow_x, grow_y = frame[0] / size[0], frame[1] / size[1]
    most_w, most_h = region[0] / grow_x, region[1] / grow_y
    area = _between(*augmentation.scale, random.scale) * region[0] * region[1]
    aspect = size[0] / size[1]
    lowest, highest = (bound * aspect for bound in augmentation.ratio)
    low, high = max(lowest, area / most_h**2), min(highest, most_w**2 / area)
    if low <= high:
        ratio = low * (high / low) ** random.ratio
    else:
        ratio = min(max(most_w / most_h, lowest), highest)
        area = min(area, most_w**2 / ratio, most_h**2 * ratio)
    width = min(math.sqrt(area * ratio) * grow_x, region[0])
    height = min(math.sqrt(area / ratio) * grow_y, region[1])
    left, top = random.left * (region[0] - width), random.top * (region[1] - height)
    return left, top, min(left + width, region[0]), min(top + height, region[1])


def _scaled(box: Box, region: tuple[int, int], image_size: tuple[int, int]) -> Box:
    """A box of the region in pixels of the image; multiplied first, so that the rounding never exceeds the image."""
    (width, height), (image_w, image_h) = region, image_size
    left, top, right, bottom = box
    return left * image_w / width, top * image_h / height, right * image_w / width, bottom * image_h / height


def _turn(
    image: Image.Image,
    box: Box,
    size: tuple[int, int],
    frame: tuple[int, int],
    angle: float,
    *,
    flip: bool,
) -> Image.Image:
    """A box scaled to the frame, rotated about its center, cropped to ``size`` and optionally flipped."""
    cos, sin = math.cos(angle), math.sin(angle)
    side = -1 if flip else 1
    across, down = (box[2] - box[0]) / frame[0], (box[3] - box[1]) / frame[1]
    (a, b), (d, e) = (across * side * cos, across * -sin), (down * side * sin, down * cos)
    x, y = size[0] / 2, size[1] / 2
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    matrix = (a, b, middle[0] - a * x - b * y, d, e, middle[1] - d * x - e * y)
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _recolour(image: Image.Image, random: _Random, colour: float) -> Image.Image:
    """Brightness, contrast around the mean grey, and saturation, as one matrix; clipped once."""
    brightness, contrast, saturation = (_between(1 - colour, 1 + colour, u) for u in random.colour)
    mean = np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0]
    grey = brightness * float(mean @ np.array(_LUMA))
    gain, offset = brightness * contrast, (1 - contrast) * grey
    matrix: list[float] = []
    for channel in range(3):
        matrix += [gain * ((1 - saturation) * _LUMA[other] + saturation * (other == channel)) for other in range(3)]
        matrix.append(offset)
    return image.convert("RGB", tuple(matrix))


def _between(low: float, high: float, random: float) -> float:
    return low + (high - low) * random


def _require_range(name: str, bounds: Sequence[float], *, most: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= most or math.isinf(bounds[1]):
        limit = "" if math.isinf(most) else f" <= {most:g}"
        raise OptionError(f"{name} {bounds}: expected (low, high) with 0 < low <= high{limit}.")
