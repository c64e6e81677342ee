"""One look at every file: content hash, size, perceptual hash, fault; and, on the way, its pixels into the cache.

A file is decoded once. What is learnt of it is kept under its content hash, so that the same picture in another folder,
under another name or in a later run costs no more than reading its bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from headstart.cache.keys import content_key
from headstart.cache.row_store import DamagedRows, RowStore
from headstart.data.bit_depth import LEVELS, ValueRange, range_of
from headstart.data.decode import DecodedImage, decode, map_images, read_values
from headstart.data.perceptual_hash import perceptual_hash
from headstart.data.preprocessing import DECODER_VERSION, MIN_DECODED_SIDE, Preprocessing, Rgb, resize_and_crop
from headstart.errors import CacheError, DataError, UnreadableImage
from headstart.progress import Progress, SilentProgress

THUMB = 16
"""Side of the thumbnail that confirms a near duplicate, in pixels."""

GREY = 32
"""Side of the grey thumbnail by which one picture is laid over a part of another, in pixels."""

LEAST_RANGE = 8
"""Of grey tones, 0-255, that sharpness is a share of: below it there is noise alone."""

JUDGED_AT = 224
"""Shorter side, in pixels, at which tones and sharpness are judged: about what a network sees."""

BATCH = 128

_TOLD: WeakKeyDictionary[Progress, set[Path]] = WeakKeyDictionary()
"""Folders of the cache whose damage a listener has heard of."""

FACTS = np.dtype(
    [
        ("width", "<u4"),
        ("height", "<u4"),
        ("format", "S8"),
        ("phash", "<u8"),
        ("thumb", "u1", (THUMB, THUMB, 3)),
        ("grey", "u1", (GREY, GREY)),
        ("tones", "u1", (3,)),
        ("brightest", "u1"),
        ("sharpness", "<f4"),
        ("bits", "u1"),
        ("used_bits", "u1"),
    ]
)
"""What is kept of every image: its size upright in pixels, Pillow's format name, a 64-bit perceptual hash (see
``data.perceptual_hash``), a thumbnail, RGB 0-255, a finer one in grey, the 1st, 5th and 99th percentile of its grey
tones, 0-255, the 99th of each pixel's largest channel, and the 99.7th of its second differences (Laplacian) as a share
of the range of its tones; bits per channel, and how many of them are used (see ``decode.DecodedImage``)."""


SHARES = (0.005, 0.995)
"""Of all values, those that lie at or below black and white where a range of values is measured."""


@dataclass(frozen=True)
class Scan:
    """What a look at N files gave.

    Attributes:
        keys: N content hashes; ``b""`` where the file could not even be read.
        faults: position of each unusable file -> the reason.
        facts: (N,) of dtype ``FACTS``; zeros where the file is unusable.
    """

    keys: list[bytes]
    faults: dict[int, str]
    facts: npt.NDArray[Any]

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: which files are usable pictures."""
        mask = np.ones(len(self.keys), dtype=bool)
        mask[list(self.faults)] = False
        return mask


@dataclass(frozen=True)
class _Look:
    key: bytes = b""
    fault: str | None = None
    facts: npt.NDArray[Any] | None = None
    pixels: Rgb | None = None


def facts_store(root: Path | None = None, *, value_range: ValueRange | None = None) -> RowStore:
    """Where the facts of every picture ever seen are kept; of deep ones they depend on the range of values."""
    about = {"decoder": DECODER_VERSION, "facts": 3, "fields": ", ".join(FACTS.names or ())}
    if value_range is not None:
        about["value_range"] = list(value_range)
    return RowStore("facts", about, dtype=FACTS, root=root)


def pixel_store(preprocessing: Preprocessing, root: Path | None = None) -> RowStore:
    """Where the pixels for one preprocessing are kept: rows of (height, width, 3) uint8."""
    shape = (preprocessing.height, preprocessing.width, 3)
    return RowStore("pixels", preprocessing.pixel_key(), dtype=np.uint8, shape=shape, root=root)


@final
class PixelReader:
    """The pixels of images, from the cache; rows that are found damaged are decoded again, which is said once.

    Args:
        preprocessing: see ``pixel_store``.
        sources: content hash of each image -> its file.
        cache: the cache folder; ``store.cache_root()`` where it is not given.
        progress: told of damaged rows.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        sources: Mapping[bytes, str],
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.store = pixel_store(preprocessing, cache)
        self._preprocessing, self._sources = preprocessing, sources
        self._progress = progress or SilentProgress()

    def read(self, keys: Sequence[bytes]) -> npt.NDArray[np.uint8]:
        """(n, height, width, 3) uint8 in the order of ``keys``.

        Raises:
            KeyError: a key has no row.
            DataError: the file of a damaged row has gone or changed.
            CacheError: the cache cannot be read or written.
        """
        try:
            return self.store.read(keys)
        except DamagedRows as damaged:
            warn_damaged("pixels", self.store.folder, self._progress)
            looks = [_look_again(self._sources.get(key), key, self._preprocessing) for key in damaged.keys]
            self.store.append(damaged.keys, np.stack([seen.pixels for seen in looks if seen.pixels is not None]))
        return self.store.read(keys)


def warn_damaged(what: str, folder: Path, progress: Progress) -> None:
    """Says that rows of a cache were found damaged and are made again; once for a folder and a listener.

    Args:
        what: the rows are.
        folder: of the store.
        progress: who is told.
    """
    with suppress(TypeError):  # a listener of the user's that can be no key: it hears of it each time
        told = _TOLD.setdefault(progress, set())
        if folder in told:
            return
        told.add(folder)
    progress.say(
        f"Warning: some {what} in the cache ({folder}) were damaged, by a power cut or a failing disk; they are "
        "computed again. To check all of the cache: headstart cache --verify."
    )


def scan(
    paths: Sequence[str],
    *,
    preprocessing: Preprocessing | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Looks at every file once.

    Args:
        paths: the files.
        preprocessing: where it is given, the pixels of every usable picture are in ``pixel_store(preprocessing)``
            afterwards.
        cache: the cache folder; ``store.cache_root()`` where it is not given.
        progress: told of each file.

    Raises:
        CacheError: the cache cannot be written, or the disk is too small for the pixels.
    """
    progress = progress or SilentProgress()
    known = facts_store(cache, value_range=preprocessing.value_range if preprocessing else None)
    pixels = pixel_store(preprocessing, cache) if preprocessing else None

    def look(path: str) -> _Look:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            return _Look(fault=(error.strerror or str(error)).lower())
        key = content_key(data)
        if key in known and (pixels is None or key in pixels):
            return _Look(key)
        try:
            return _decode_once(data, key, preprocessing)
        except UnreadableImage as error:
            return _Look(key, fault=error.reason)

    keys: list[bytes] = []
    faults: dict[int, str] = {}
    fresh: list[_Look] = []

    def keep() -> None:
        if pixels is not None:
            pixels.require_space(len(fresh))
            pixels.append([f.key for f in fresh], np.stack([f.pixels for f in fresh if f.pixels is not None]))
        known.append([f.key for f in fresh], np.array([f.facts for f in fresh], dtype=FACTS))
        fresh.clear()

    with progress.task("Reading images", len(paths)) as advance:
        for position, seen in enumerate(map_images(look, paths)):
            keys.append(seen.key)
            if seen.fault is not None:
                faults[position] = seen.fault
            elif seen.facts is not None:
                fresh.append(seen)
                if len(fresh) >= BATCH:
                    keep()
            advance(1)
        if fresh:
            keep()
    facts = np.zeros(len(keys), dtype=FACTS)
    usable = [i for i in range(len(keys)) if i not in faults]
    own = [keys[i] for i in usable]
    try:
        facts[usable] = known.read(own)
    except DamagedRows as damaged:
        warn_damaged("facts of images", known.folder, progress)
        sources = {keys[i]: paths[i] for i in usable}
        looks = [_look_again(sources[key], key, None) for key in damaged.keys]
        known.append(damaged.keys, np.array([seen.facts for seen in looks], dtype=FACTS))
        facts[usable] = known.read(own)
    return Scan(keys, faults, facts)


def measure_value_range(paths: Sequence[str], *, progress: Progress | None = None) -> ValueRange:
    """The range that most values of some images lie in: the percentiles of ``SHARES``, each image counting the same.

    Args:
        paths: image files of more than 8 bits per channel; at least one.
        progress: told of each file.

    Returns:
        (black, white) as shares of the full scale.

    Raises:
        UnreadableImage: a file cannot be read, or has 8 bits.
    """
    progress = progress or SilentProgress()
    total, count = np.zeros(LEVELS), 0

    def histogram(path: str) -> npt.NDArray[np.float64]:
        values = read_values(path)
        if values is None:
            raise UnreadableImage(path, "has 8 bits per channel now; the file has changed since it was first read")
        return values.histogram()

    with progress.task("Measuring the range of values", len(paths)) as advance:
        for own in map_images(histogram, paths):
            total, count = total + own, count + 1
            advance(1)
    return range_of(total / count, SHARES)


def _look_again(path: str | None, key: bytes, preprocessing: Preprocessing | None) -> _Look:
    """At a picture that was read before.

    Raises:
        DataError: its file has gone or changed.
    """
    if path is None:
        raise CacheError("a damaged row of pixels was dropped. Run the same command again; it reads the image again.")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}. It was readable earlier in this run; check the file and run the "
            "command again."
        ) from error
    if content_key(data) != key:
        raise DataError(f"{path}: has changed since this command first read it. Run the command again.")
    return _decode_once(data, key, preprocessing)


def _decode_once(data: bytes, key: bytes, preprocessing: Preprocessing | None) -> _Look:
    """Facts come from the same decode on every path, so that they never depend on the backbone that is in use."""
    value_range = preprocessing.value_range if preprocessing else None
    decoded = decode(data, value_range=value_range)
    facts = _facts(decoded)
    if preprocessing is None:
        return _Look(key, facts=facts)
    if preprocessing.decode_at_least > MIN_DECODED_SIDE:
        decoded = decode(data, min_side=preprocessing.decode_at_least, value_range=value_range)
    return _Look(key, facts=facts, pixels=resize_and_crop(decoded.image, preprocessing))


def _facts(decoded: DecodedImage) -> npt.NDArray[Any]:
    bits = perceptual_hash(decoded.image)
    thumb = np.asarray(decoded.image.resize((THUMB, THUMB), Image.Resampling.BOX))
    word = int.from_bytes(np.packbits(bits).tobytes(), "big")
    fine = np.asarray(decoded.image.convert("L").resize((GREY, GREY), Image.Resampling.BOX))
    own = (decoded.width, decoded.height, decoded.format.encode()[:8], word, thumb, fine)
    return np.array((*own, *_tones_and_sharpness(decoded.image), decoded.bits, decoded.used_bits), dtype=FACTS)


def _tones_and_sharpness(image: Image.Image) -> tuple[list[int], int, float]:
    ratio = min(image.size) / JUDGED_AT
    if ratio > 1:
        image = image.resize((round(image.width / ratio), round(image.height / ratio)), Image.Resampling.BOX)
    grey = image.convert("L")
    largest = functools.reduce(ImageChops.lighter, image.split())
    tones = _percentiles(np.array(grey.histogram()), (1, 5, 99))
    (brightest,) = _percentiles(np.array(largest.histogram()), (99,))
    if min(grey.size) < 3:
        return tones, brightest, 1.0
    a = np.asarray(grey).astype(np.int16)
    edges = np.abs(4 * a[1:-1, 1:-1] - a[:-2, 1:-1] - a[2:, 1:-1] - a[1:-1, :-2] - a[1:-1, 2:])
    (edge,) = _percentiles(np.bincount(edges.ravel()), (99.7,))
    return tones, brightest, edge / max(LEAST_RANGE, tones[2] - tones[0])


def _percentiles(counts: npt.NDArray[np.int64], shares: Sequence[float]) -> list[int]:
    """Values that these shares, in per cent, of all do not exceed; ``counts`` of the values 0, 1, 2, ..."""
    reached = np.cumsum(counts) / counts.sum()
    return [int(np.searchsorted(reached, share / 100)) for share in shares]
