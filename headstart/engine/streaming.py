"""Running an engine over many images: batching, padding of the last batch, and prefetching for a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from headstart.engine.interface import Engine, Features, Pixels
from headstart.engine.torch_engine import TorchEngine, is_asynchronous

BATCHES_IN_FLIGHT = 3
"""Batches that are queued on a GPU before the output of the first is read."""


def run_in_batches(engine: Engine, pixels: Pixels) -> Features:
    """Computes any number of images, at least one.

    Args:
        engine: computes them.
        pixels: (N, H, W, 3) uint8.

    Returns:
        (N, ...) float32.
    """
    step = engine.batch_size
    return np.concatenate([engine(pixels[start : start + step]) for start in range(0, len(pixels), step)])


def run_stream(engine: Engine, batches: Iterable[Pixels]) -> Iterator[Features]:
    """Computes batches of images one after the other, each padded to the engine's batch size.

    Kernels may depend on the batch size. With padding, the output of an image does not depend on its batch.
    """
    size = engine.batch_size
    pending: deque[tuple[int, Callable[[], Features]]] = deque()
    limit = BATCHES_IN_FLIGHT if is_asynchronous(engine) else 1
    for pixels in _prefetch(batches) if is_asynchronous(engine) else batches:
        missing = -len(pixels) % size
        padded = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)]) if missing else pixels
        pending.append((len(pixels), _start(engine, padded)))
        if len(pending) == limit:
            yield _next(pending)
    while pending:
        yield _next(pending)


def _prefetch(batches: Iterable[Pixels]) -> Iterator[Pixels]:
    """The same batches in pinned memory; two threads read and copy the next ones while one is used."""
    source, pinned = iter(batches), deque[Future[Pixels | None]]()

    def pin(read: Future[Pixels | None]) -> Pixels | None:
        batch = read.result()
        return None if batch is None else torch.from_numpy(np.ascontiguousarray(batch)).pin_memory().numpy()

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as pinner:
        while True:
            while len(pinned) < BATCHES_IN_FLIGHT:
                pinned.append(pinner.submit(pin, reader.submit(next, source, None)))
            ready = pinned.popleft().result()
            if ready is None:
                return
            yield ready


def _start(engine: Engine, pixels: Pixels) -> Callable[[], Features]:
    if isinstance(engine, TorchEngine) and len(pixels) == engine.batch_size:
        return engine.start(pixels)
    out = run_in_batches(engine, pixels)
    return lambda: out


def _next(pending: deque[tuple[int, Callable[[], Features]]]) -> Features:
    count, wait = pending.popleft()
    return wait()[:count]
