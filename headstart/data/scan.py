"""Scan of all image files: content hash, facts (size, hashes, tones, bit depth) and faults; fills the pixel cache.

A file is decoded once. Its facts are cached by content hash, so that the same image in another folder, under another
name or in a later run costs only reading its bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from headstart.cache.keys import content_key
from headstart.cache.row_store import DamagedRows, RowStore, warn_damaged
from headstart.concurrency import map_images
from headstart.data.bit_depth import LEVELS, ValueRange, range_of
from headstart.data.decode import decode, read_values
from headstart.data.perceptual_hash import perceptual_hash
from headstart.data.pixel_cache import pixel_store, read_unchanged
from headstart.data.preprocessing import DECODER_VERSION, MIN_DECODED_SIDE, Preprocessing, Rgb, resize_and_crop
from headstart.data.rgb import DecodedImage
from headstart.data.sources.read import num_reading_threads, read_image, reading_order
from headstart.errors import UnreadableImage
from headstart.progress import Progress, SilentProgress

THUMB = 16
"""Side of the thumbnail that confirms a near duplicate, in pixels."""

GREY = 32
"""Side of the grey thumbnail that is compared with cropped images, in pixels."""

LEAST_RANGE = 8
"""Minimum range of grey tones, 0-255, that sharpness is divided by: below it there is only noise."""

JUDGED_AT = 224
"""Shorter side in pixels at which tones and sharpness are measured, about a network's input."""

BATCH = 128

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
"""Facts of an image: upright size in pixels, Pillow's format name, 64-bit perceptual hash (see
``data.perceptual_hash``), RGB thumbnail, finer grey thumbnail; 1st, 5th and 99th percentile of the grey tones, 0-255;
99th percentile of each pixel's largest channel; sharpness, which is the 99.7th percentile of second differences
(Laplacian) relative to the range of tones; bits per channel, and bits used (see ``decode.DecodedImage``)."""

SHARES = (0.005, 0.995)
"""Quantiles of all values that become black and white when a value range is measured."""


@dataclass(frozen=True)
class Scan:
    """The result of a scan of N files.

    Attributes:
        keys: N content hashes; ``b""`` for a file that could not be read.
        faults: position of each unusable file -> the reason.
        facts: (N,) of dtype ``FACTS``; zeros for unusable files.
    """

    keys: list[bytes]
    faults: dict[int, str]
    facts: npt.NDArray[Any]

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: which files are usable images."""
        mask = np.ones(len(self.keys), dtype=bool)
        mask[list(self.faults)] = False
        return mask


@dataclass(frozen=True)
class _ScannedFile:
    """The scan of one file; ``facts`` are None if they are cached or the file has a fault."""

    key: bytes = b""
    fault: str | None = None
    facts: npt.NDArray[Any] | None = None
    pixels: Rgb | None = None


def facts_store(root: Path | None = None, *, value_range: ValueRange | None = None) -> RowStore:
    """The cache of facts; those of images with more than 8 bits depend on the value range."""
    about = {"decoder": DECODER_VERSION, "facts": 3, "fields": ", ".join(FACTS.names or ())}
    if value_range is not None:
        about["value_range"] = list(value_range)
    return RowStore("facts", about, dtype=FACTS, root=root)


def scan(
    paths: Sequence[str],
    *,
    preprocessing: Preprocessing | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Scans every file once.

    Args:
        paths: addresses of the images.
        preprocessing: if given, the pixels of all usable images are in ``pixel_store(preprocessing)`` afterwards.
        cache: the cache folder; ``cache.entries.cache_root()`` if None.
        progress: receives a step per file.

    Raises:
        CacheError: the cache cannot be written, or the disk has no space for the pixels.
        SourceError: the storage of an image cannot be reached.
    """
    progress = progress or SilentProgress()
    scanner = _Scanner(preprocessing, cache)
    keys = [b""] * len(paths)
    faults: dict[int, str] = {}
    fresh: list[_ScannedFile] = []
    order, threads = reading_order(paths), num_reading_threads(paths)
    with progress.task("Reading images", len(paths)) as advance:
        read = map_images(scanner.scan, (paths[position] for position in order), threads=threads)
        for position, scanned in zip(order, read, strict=True):
            keys[position] = scanned.key
            if scanned.fault is not None:
                faults[position] = scanned.fault
            elif scanned.facts is not None:
                fresh.append(scanned)
                if len(fresh) >= BATCH:
                    scanner.append(fresh)
                    fresh = []
            advance(1)
        if fresh:
            scanner.append(fresh)
    facts = np.zeros(len(keys), dtype=FACTS)
    usable = [i for i in range(len(keys)) if i not in faults]
    facts[usable] = scanner.read_facts([keys[i] for i in usable], [paths[i] for i in usable], progress)
    return Scan(keys, faults, facts)


class _Scanner:
    """Scans single files, with the caches of facts and of pixels."""

    def __init__(self, preprocessing: Preprocessing | None, cache: Path | None) -> None:
        self.preprocessing = preprocessing
        self.facts = facts_store(cache, value_range=preprocessing.value_range if preprocessing else None)
        self.pixels = pixel_store(preprocessing, cache) if preprocessing else None

    def scan(self, path: str) -> _ScannedFile:
        try:
            data = read_image(path)
        except UnreadableImage as error:
            return _ScannedFile(fault=error.reason)
        key = content_key(data)
        if key in self.facts and (self.pixels is None or key in self.pixels):
            return _ScannedFile(key)
        try:
            return _decode_once(data, key, self.preprocessing)
        except UnreadableImage as error:
            return _ScannedFile(key, fault=error.reason)

    def append(self, scanned: Sequence[_ScannedFile]) -> None:
        """Writes what was decoded to the caches."""
        keys = [file.key for file in scanned]
        if self.pixels is not None:
            self.pixels.require_space(len(scanned))
            self.pixels.append(keys, np.stack([file.pixels for file in scanned if file.pixels is not None]))
        self.facts.append(keys, np.array([file.facts for file in scanned], dtype=FACTS))

    def read_facts(self, keys: Sequence[bytes], paths: Sequence[str], progress: Progress) -> npt.NDArray[Any]:
        """(N,) facts of N files, from the cache; damaged ones are computed again."""
        try:
            return self.facts.read(keys)
        except DamagedRows as damaged:
            warn_damaged("facts of images", self.facts.folder, progress)
            path_of = dict(zip(keys, paths, strict=True))
            decoded = [_decode_once(read_unchanged(path_of[key], key), key, None) for key in damaged.keys]
            self.facts.append(damaged.keys, np.array([file.facts for file in decoded], dtype=FACTS))
        return self.facts.read(keys)


def measure_value_range(paths: Sequence[str], *, progress: Progress | None = None) -> ValueRange:
    """Measures a value range: the quantiles ``SHARES`` of all values, with equal weight for each image.

    Args:
        paths: image files with more than 8 bits per channel; at least one.
        progress: receives a step per file.

    Returns:
        (black, white) as shares of the full scale, in [0, 1].

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

    with progress.task("Measuring the value range", len(paths)) as advance:
        for levels in map_images(histogram, paths):
            total, count = total + levels, count + 1
            advance(1)
    return range_of(total / count, SHARES)


def _decode_once(data: bytes, key: bytes, preprocessing: Preprocessing | None) -> _ScannedFile:
    """Facts come from the same decoding for every backbone, so that they never depend on its input size."""
    value_range = preprocessing.value_range if preprocessing else None
    decoded = decode(data, value_range=value_range)
    facts = _facts(decoded)
    if preprocessing is None:
        return _ScannedFile(key, facts=facts)
    if preprocessing.decode_at_least > MIN_DECODED_SIDE:
        decoded = decode(data, min_side=preprocessing.decode_at_least, value_range=value_range)
    return _ScannedFile(key, facts=facts, pixels=resize_and_crop(decoded.image, preprocessing))


def _facts(decoded: DecodedImage) -> npt.NDArray[Any]:
    bits = perceptual_hash(decoded.image)
    thumb = np.asarray(decoded.image.resize((THUMB, THUMB), Image.Resampling.BOX))
    word = int.from_bytes(np.packbits(bits).tobytes(), "big")
    fine = np.asarray(decoded.image.convert("L").resize((GREY, GREY), Image.Resampling.BOX))
    size_and_content = (decoded.width, decoded.height, decoded.format.encode()[:8], word, thumb, fine)
    return np.array(
        (*size_and_content, *_tones_and_sharpness(decoded.image), decoded.bits, decoded.used_bits), dtype=FACTS
    )


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
    """Percentiles of a histogram; ``counts`` of the values 0, 1, 2, ..."""
    reached = np.cumsum(counts) / counts.sum()
    return [int(np.searchsorted(reached, share / 100)) for share in shares]
