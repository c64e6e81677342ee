"""A model at work for many at once: pictures that arrive together run together."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, final

import numpy as np
from threadpoolctl import threadpool_limits

from headstart.backbone.device import give_back_freed_memory
from headstart.backbone.engine import Engine, Pixels, choose_engine, made_up
from headstart.errors import LargeImage
from headstart.model import Model, Prediction, unreadable
from headstart.progress import Progress, SilentProgress
from headstart.serve.guard import Traffic
from headstart.serve.limits import Limits
from headstart.serve.metrics import Metrics
from headstart.serve.problem import Refusal
from headstart.serve.room import Room

MANY = 1_000_000
"""Pictures that a server is taken to see: every engine is worth its preparation."""

DECODERS = 8
"""Threads that decode, at most."""

AT_ONCE = 4_000_000
"""Pixels up to which each thread decodes what comes; larger pictures stand in line, until all that are being decoded
have no more than one may have by itself (``Limits.pixels``). A JPEG counts by what it is reduced to."""

Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting:
    """A picture that is decoded, and whoever waits for its answer."""

    name: str
    pixels: Pixels
    answer: asyncio.Future[Prediction]


@final
class Service:
    """A model, the threads that decode for it, and the one thread that runs its engine.

    Args:
        model: what answers.
        run: the run folder that it comes from, where there is one.
        limits: what it takes on.
        device: see ``device.resolve_device``.
        progress: told which engine runs.
    """

    def __init__(
        self,
        model: Model,
        *,
        run: Path | None = None,
        limits: Limits | None = None,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.run = run
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.traffic = Traffic()
        self.engine: Engine | None = None
        self.fault: Exception | None = None
        self._device, self._progress = device, progress or SilentProgress()
        self._held = 0
        self._coming = 0
        self._waiting: deque[_Waiting] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._more = threading.Condition()
        self._closed = False
        self._decoders: ThreadPoolExecutor | None = None
        self._ordinary: Room | None = None
        self._large: Room | None = None
        self._worker: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine has run, and new requests are taken."""
        return self.engine is not None and not self.traffic.draining

    @property
    def held(self) -> int:
        """Pictures that wait or are worked on."""
        return self._held

    def start(self) -> None:
        """Starts the threads; the engine is chosen and warmed up in its own."""
        threads = min(DECODERS, os.cpu_count() or 1)
        self._decoders = ThreadPoolExecutor(threads, "headstart-decode")
        self._ordinary = Room(self._decoders, threads)
        self._large = Room(self._decoders, self.limits.pixels)
        self._worker = threading.Thread(target=self._work, name="headstart-engine", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Ends the threads; what still waits is not answered."""
        with self._more:
            self._closed = True
            self._more.notify()
        if self._worker is not None:
            self._worker.join(timeout=self.limits.request_seconds)
        if self._decoders is not None:
            self._decoders.shutdown(wait=False, cancel_futures=True)

    async def predict(self, pictures: Sequence[tuple[str, bytes]]) -> list[Prediction]:
        """Classifies pictures, with all those that others have sent meanwhile.

        Args:
            pictures: N names and files' bytes.

        Returns:
            N predictions with all classes, in order; one that cannot be read says why in its own.

        Raises:
            Refusal: too much waits already (503), or it took too long (504).
        """
        async with self._admitted(len(pictures)):
            return list(await asyncio.gather(*(self._one(name, data) for name, data in pictures)))

    async def decode(self, work: Callable[[int | None], Result]) -> Result:
        """Runs something that decodes one picture, where and when ``predict`` would decode it.

        It counts as one picture in the queue.

        Args:
            work: is given the pixels that it may decode at once, see ``images.decode``.

        Raises:
            Refusal: as ``predict``; and whatever ``work`` raises.
        """
        async with self._admitted(1):
            return await self._decoded(work)

    def pixels(self, data: bytes, at_once: int | None) -> Pixels | str:
        """See ``Model.pixels``; within the limits."""
        return self.model.pixels(data, most=self.limits.pixels, at_once=at_once)

    async def alone(self, work: Callable[[], Result]) -> Result:
        """Runs something heavy in the engine's thread, between two batches, so that both have all cores in turn.

        It counts as one picture in the queue.

        Raises:
            Refusal: as ``predict``; and whatever ``work`` raises.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def errand() -> None:
            try:
                result = work()
            except Exception as error:
                loop.call_soon_threadsafe(_settle, answer, None, error)
            else:
                loop.call_soon_threadsafe(_settle, answer, result, None)

        async with self._admitted(1):
            with self._more:
                self._errands.append(errand)
                self._more.notify()
            return await answer

    @asynccontextmanager
    async def _admitted(self, count: int) -> AsyncIterator[None]:
        """Counts pictures while they are worked on, and gives them up in time."""
        self._admit(count)
        seconds = self.limits.request_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Refusal(504, f"No answer within {seconds:g} s. Send fewer or smaller pictures at a time.") from None
        finally:
            self._release(count)

    def _admit(self, count: int) -> None:
        if self.fault is not None:
            raise Refusal(503, "The model cannot be run here; the server is about to stop.", retry_after=5)
        if self._held + count > self.limits.queue:
            raise Refusal(
                503,
                f"{self._held:,} pictures wait already; no more than {self.limits.queue:,} may. Send it again later.",
                retry_after=1,
            )
        self._held += count
        self.metrics.queue.set(self._held)

    def _release(self, count: int) -> None:
        self._held -= count
        self.metrics.queue.set(self._held)

    async def _one(self, name: str, data: bytes) -> Prediction:
        loop = asyncio.get_running_loop()
        seen = await self._decoded(partial(self._timed, data))
        self.metrics.pictures.inc()
        if isinstance(seen, str):
            self.metrics.faults.inc()
            return unreadable(name, seen)
        waiting = _Waiting(name, seen, loop.create_future())
        with self._more:
            self._waiting.append(waiting)
            self._more.notify()
        return await waiting.answer

    async def _decoded(self, work: Callable[[int | None], Result]) -> Result:
        assert self._ordinary is not None, "start() comes first"
        assert self._large is not None
        self._coming += 1
        try:
            return await asyncio.wrap_future(self._ordinary.submit(1, partial(work, AT_ONCE)))
        except LargeImage as large:
            pixels = large.pixels
        finally:
            self._coming -= 1
        return await asyncio.wrap_future(self._large.submit(pixels, partial(_alone_in_memory, work)))

    def _timed(self, data: bytes, at_once: int | None) -> Pixels | str:
        started = time.perf_counter()
        seen = self.pixels(data, at_once)
        self.metrics.decoding.observe(time.perf_counter() - started)
        return seen

    def _work(self) -> None:
        """The engine's thread, from its first breath to its last."""
        with threadpool_limits(1, user_api="blas"):  # NumPy's threads wait for cores that decode: 52 ms, not 0.3
            self._serve()

    def _serve(self) -> None:
        try:
            engine = self._warmed_up()
        except Exception as error:
            self.fault = error
            return
        self.engine = engine
        while (batch := self._next_batch(engine.batch_size)) is not None:
            if callable(batch):
                batch()
            elif batch:
                self._answer(engine, batch)

    def _warmed_up(self) -> Engine:
        net = self.model.net
        sample = made_up(self.model.preprocessing.height, self.model.preprocessing.width)
        engine = choose_engine(net, count=MANY, sample=sample, device=self._device, progress=self._progress)
        for size in (1, engine.batch_size):
            self.model.judge(engine(np.resize(sample, (size, *sample.shape[1:]))))
        self._progress.say(f"Engine: {engine.name}.")
        return engine

    def _next_batch(self, size: int) -> list[_Waiting] | Callable[[], None] | None:
        """What runs next: an errand, pictures that run together, or None at the end."""
        with self._more:
            while not (self._waiting or self._errands or self._closed):
                self._more.wait()
            if self._closed:
                return None
            if self._errands:
                return self._errands.popleft()
            until = time.monotonic() + self.limits.gather_ms / 1000
            while len(self._waiting) < size and self._coming > 0 and (left := until - time.monotonic()) > 0:
                self._more.wait(left)
            taken = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
        return [own for own in taken if not own.answer.done()]

    def _answer(self, engine: Engine, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        loop = batch[0].answer.get_loop()
        try:
            chances, odd = self.model.judge(engine(np.stack([own.pixels for own in batch])))
            answers = [self.model.prediction(own.name, *said) for own, *said in zip(batch, chances, odd, strict=True)]
        except Exception as error:  # an engine raises its own: the requests fail, the server goes on
            loop.call_soon_threadsafe(_settle_all, batch, None, error)
            return
        self.metrics.batch.observe(len(batch))
        self.metrics.running.observe(time.perf_counter() - started)
        loop.call_soon_threadsafe(_settle_all, batch, answers, None)


def _alone_in_memory(work: Callable[[int | None], Result]) -> Result:
    """Something large, which leaves nothing behind: it would be kept for each thread."""
    try:
        return work(None)
    finally:
        give_back_freed_memory()


def _settle(answer: asyncio.Future[Result], result: Result | None, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)  # type: ignore[arg-type]


def _settle_all(batch: list[_Waiting], answers: list[Prediction] | None, error: Exception | None) -> None:
    for place, own in enumerate(batch):
        _settle(own.answer, None if answers is None else answers[place], error)
