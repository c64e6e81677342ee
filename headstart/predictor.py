"""Predictor: preprocesses images and runs the frozen backbone on them, with one inference engine per process."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import FeatureNet
from headstart.concurrency import ProcessLock, map_images
from headstart.data.decode import decode
from headstart.data.image_inputs import ImageLike, read_source
from headstart.data.image_source import ImageSource
from headstart.data.preprocessing import Preprocessing, Rgb, resize_and_crop
from headstart.data.quality import UNUSED_BITS, describe_unused_bits
from headstart.data.rgb import as_rgb
from headstart.data.sources.read import num_reading_threads
from headstart.engine.device import resolve_device, settle_after_fork
from headstart.errors import UnreadableImage
from headstart.progress import Progress
from headstart.training.heads import logits_on, vectors_of

if TYPE_CHECKING:
    from headstart.engine.interface import Engine

BATCH_SIZE = 32

Item = TypeVar("Item")

_ENGINE_LOCK = ProcessLock()
"""Held while an engine is measured and built: measurements in several threads would disturb each other."""


@dataclass(frozen=True)
class FeatureBatch:
    """Features of a batch of images.

    Attributes:
        positions: positions of the readable images.
        features: (len(positions), ...) float32; None if no image of the batch can be read.
        errors: position -> reason, for each image that cannot be read.
    """

    positions: list[int]
    features: npt.NDArray[np.float32] | None
    errors: dict[int, str]

    @property
    def num_images(self) -> int:
        """Images of the batch, readable or not."""
        return len(self.positions) + len(self.errors)


@final
class Predictor:
    """Image -> features -> logits of a frozen classifier.

    Threads may share a predictor. A forked child builds a new engine at its first prediction.

    Args:
        net: uint8 pixels -> features.
        head: features -> logits.
    """

    def __init__(self, net: FeatureNet, head: nn.Module) -> None:
        self.net, self.head = net, head
        self._head_float64: nn.Module | None = None
        self._engines: dict[tuple[object, ...], Engine] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the engines, which cannot leave their process."""
        return self.__dict__ | {"_engines": {}}

    @property
    def preprocessing(self) -> Preprocessing:
        """Crop, size and normalisation of the backbone's input."""
        return self.net.backbone.preprocessing

    def preprocess(
        self, image: ImageLike, *, max_pixels: int | None = None, max_decoded_pixels: int | None = None
    ) -> Rgb | str:
        """Decodes, crops and resizes an image; see ``Model.preprocess``."""
        return self._preprocess(image, max_pixels=max_pixels, max_decoded_pixels=max_decoded_pixels)

    def _preprocess(
        self,
        image: ImageLike,
        *,
        max_pixels: int | None = None,
        max_decoded_pixels: int | None = None,
        depths: list[tuple[int, int]] | None = None,
    ) -> Rgb | str:
        """As ``preprocess``; appends (bits per channel, bits used) of an image file to ``depths``."""
        content, size = read_source(image).content, self.preprocessing
        try:
            if isinstance(content, (Image.Image, np.ndarray)):
                rgb = as_rgb(content, value_range=size.value_range)
            else:
                decoded = decode(
                    content,
                    min_side=size.decode_at_least,
                    value_range=size.value_range,
                    max_pixels=max_pixels,
                    max_decoded_pixels=max_decoded_pixels,
                )
                rgb = decoded.image
                if depths is not None and decoded.bits > 8:
                    depths.append((decoded.bits, decoded.used_bits))
            return resize_and_crop(rgb, size, max_decoded_pixels=max_decoded_pixels)
        except UnreadableImage as error:
            return error.reason

    def batches(self, sources: Sequence[ImageSource], device: str, progress: Progress) -> Iterator[FeatureBatch]:
        """Features of images, in batches and in order; images are decoded in threads meanwhile."""
        from headstart.engine.streaming import run_in_batches

        depths: list[tuple[int, int]] = []  # appended to by the threads

        def preprocess(source: ImageSource) -> Rgb | str:
            return self._preprocess(source, depths=depths)

        threads = num_reading_threads([source.content for source in sources if isinstance(source.content, str)])
        for batch in _batches(enumerate(map_images(preprocess, sources, threads=threads)), BATCH_SIZE):
            errors = {position: pixels for position, pixels in batch if isinstance(pixels, str)}
            readable = [(position, pixels) for position, pixels in batch if not isinstance(pixels, str)]
            features = None
            if readable:
                stacked = np.stack([pixels for _, pixels in readable])
                features = run_in_batches(self.engine(len(sources), stacked, device, progress), stacked)
            yield FeatureBatch([position for position, _ in readable], features, errors)
        if self.preprocessing.value_range is None:
            _warn_unused_bits(depths, progress)

    def engine(self, num_images: int, sample: npt.NDArray[np.uint8], device: str, progress: Progress) -> Engine:
        """The inference engine for a number of images; built once per process and device.

        Args:
            num_images: from ``MEASURE_FROM`` images on, a faster engine, compared with PyTorch on ``sample``.
            sample: (N, H, W, 3) preprocessed images.
            device: "auto", "cpu", "cuda" or "mps".
            progress: receives the reason of the choice.
        """
        from headstart.engine.measure import MEASURE_FROM  # here and below: a model is loaded without ONNX
        from headstart.engine.select import choose_engine

        resolved = str(resolve_device(device))
        key = os.getpid(), resolved, num_images >= MEASURE_FROM
        with _ENGINE_LOCK:
            if key not in self._engines:
                self._engines[key] = choose_engine(
                    self.net, count=num_images, sample=sample, device=resolved, progress=progress
                )
            return self._engines[key]

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(N, ...) float32 features -> (N, classes) float64 logits."""
        settle_after_fork()
        if self._head_float64 is None:
            self._head_float64 = copy.deepcopy(self.head).double()
        return logits_on(self._head_float64, features, torch.float64)

    def embed(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, ...) float32 features -> (N, D) vectors for nearest-neighbour distances."""
        return vectors_of(features, Layout.of(self.net.backbone.module))


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _warn_unused_bits(depths: Sequence[tuple[int, int]], progress: Progress) -> None:
    """Reports images that look dark because they use few of their bits, as ``headstart check`` does."""
    for bits in sorted({bits for bits, _ in depths}):
        used = [used for other, used in depths if other == bits]
        if bits - max(used) >= UNUSED_BITS:
            progress.say(
                f"Warning: {describe_unused_bits(len(used), bits, max(used))}, and the model was trained without a "
                "value range. If its training images were brighter, scale these images in the same way."
            )
