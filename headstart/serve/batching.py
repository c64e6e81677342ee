"""Dynamic batching: images that arrive together run together, and ahead of every other kind of work."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from threadpoolctl import threadpool_limits

from headstart.concurrency import usable_cpus
from headstart.engine.device import give_back_freed_memory
from headstart.engine.interface import Engine, Pixels
from headstart.engine.select import choose_engine, synthetic_sample
from headstart.errors import LargeImage
from headstart.model import Model
from headstart.prediction import Prediction, unreadable_prediction
from headstart.progress import Progress, SilentProgress
from headstart.serve.decode_budget import Room
from headstart.serve.errors import Refusal
from headstart.serve.limits import Limits
from headstart.serve.middleware import Traffic
from headstart.serve.prometheus import Metrics

MANY = 1_000_000
"""Pictures that a server is taken to see: every engine is worth its preparation."""

DECODERS = 8
"""Threads that decode, at most."""

AT_ONCE = 4_000_000
"""Pixels up to which each thread decodes what comes; larger pictures stand in line, until all that are being decoded
have no more than one may have by itself (``Limits.pixels``). A JPEG counts by what it is reduced to."""

SIDE_TURN = 2.0
"""Seconds after which one request of another kind runs although predictions wait: under constant load, explanations
are slow, not impossible."""

RETRY_AFTER = 2
"""Seconds after which a request of another kind may be sent again."""

EXIT_WAIT = 10.0
"""Seconds that closing waits for the engine's thread, at most."""

Decoded = TypeVar("Decoded")
Result = TypeVar("Result")


class Work(StrEnum):
    """Kinds of work. Each has its own bound; predictions run first, the others in turn."""

    predict = "predict"
    explain = "explain"
    nearest = "nearest"
    correct = "correct"


class Abandoned(Exception):
    """Nobody waits for this work any more: its client has left, or its time is over."""


@dataclass(eq=False)
class _Waiting:
    """An image that is decoded, and whoever waits for its answer."""

    name: str
    pixels: Pixels
    answer: asyncio.Future[Prediction]


@dataclass(eq=False)
class _Errand:
    """Work of another kind than predictions, and whoever waits for its result."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    since: float

    def run(self) -> None:
        try:
            result = self.work()
        except Exception as error:  # whoever waits is told; the engine's thread goes on
            _tell(self.answer, None, error)
        else:
            _tell(self.answer, result, None)


Queued = TypeVar("Queued", _Waiting, _Errand)


@final
class Service:
    """A model, the threads that decode for it, and the one thread that runs its engine.

    It starts with ``start``, or by itself with the first request; it ends with ``close``, or with the process.

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
        self._starting = threading.Lock()
        self._process = 0
        self._reset()

    def _reset(self) -> None:
        """No threads, nothing that waits."""
        self.engine, self.fault = None, None
        self._held: Counter[Work] = Counter()
        self._coming = 0
        self._waiting: deque[_Waiting] = deque()
        self._errands: dict[Work, deque[_Errand]] = {kind: deque() for kind in Work if kind != Work.predict}
        self._last_errand = 0.0
        self._more = threading.Condition()  # reentrant
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
        """Requests' images that wait or are worked on, of all kinds."""
        return self._held.total()

    def start(self) -> None:
        """Starts the threads, unless they run; the engine is chosen and warmed up in its own.

        After a fork, the child starts threads of its own.
        """
        with self._starting:
            if self._worker is not None and self._process == os.getpid() and not self._closed:
                return
            self._reset()
            self._process = os.getpid()
            threads = min(DECODERS, usable_cpus())
            self._decoders = ThreadPoolExecutor(threads, "headstart-decode")
            self._ordinary = Room(self._decoders, threads)
            self._large = Room(self._decoders, self.limits.pixels)
            self._worker = threading.Thread(target=self._work, name="headstart-engine", daemon=True)
            self._worker.start()
            atexit.register(self.close)

    def close(self) -> None:
        """Ends the threads; what still waits is not answered, and new work is refused."""
        atexit.unregister(self.close)
        with self._more:
            self._closed = True
            self._more.notify()
        if self._worker is not None and self._process == os.getpid():
            self._worker.join(timeout=min(EXIT_WAIT, self.limits.request_seconds))
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
        async with self._admitted(Work.predict, len(pictures)):
            return list(await asyncio.gather(*(self._one(name, data) for name, data in pictures)))

    async def decode(self, kind: Work, work: Callable[[int | None], Decoded]) -> Decoded:
        """Runs something that decodes one image, in the threads that decode for ``predict``.

        Args:
            kind: of the work; each has its own bound, ``Limits.side_queue``.
            work: is given the pixels that it may decode at once, see ``images.decode``.

        Raises:
            Refusal: as ``predict``; and whatever ``work`` raises.
        """
        async with self._admitted(kind):
            return await self._decoded(work, urgent=False)

    async def aside(
        self,
        kind: Work,
        decode: Callable[[int | None], Decoded],
        work: Callable[[Decoded, Callable[[], None]], Result],
    ) -> Result:
        """Decodes an image, then runs something heavy with it in the engine's thread, between two batches.

        Args:
            kind: as for ``decode``.
            decode: likewise.
            work: is given what ``decode`` returned, and a function to call between its steps: it lets the images
                that wait run first, and raises ``Abandoned`` once nobody waits for the result.

        Raises:
            Refusal: as ``predict``; and whatever ``decode`` and ``work`` raise.
        """
        async with self._admitted(kind):
            seen = await self._decoded(decode, urgent=False)
            answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

            def check() -> None:
                if self.engine is not None and (batch := self._next_batch(self.engine.batch_size)):
                    self._answer(self.engine, batch)
                if answer.done():
                    raise Abandoned

            errand = _Errand(partial(work, seen, check), answer, time.monotonic())
            with self._more:
                self._errands[kind].append(errand)
                self._more.notify()
            return await answer

    def pixels(self, data: bytes, max_decoded_pixels: int | None) -> Pixels | str:
        """See ``Model.pixels``; within the limits."""
        return self.model.preprocess(data, max_pixels=self.limits.pixels, max_decoded_pixels=max_decoded_pixels)

    @asynccontextmanager
    async def _admitted(self, kind: Work, count: int = 1) -> AsyncIterator[None]:
        """Counts images while they are worked on, and gives them up in time."""
        if self._worker is None or self._process != os.getpid():
            self.start()  # no lifespan has run: this application is mounted in another
        self._admit(kind, count)
        held, seconds = self._held, self.limits.request_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Refusal(504, f"No answer within {seconds:g} s. Send fewer or smaller pictures at a time.") from None
        finally:
            held[kind] -= count
            self._count(kind)

    def _admit(self, kind: Work, count: int) -> None:
        if self.fault is not None or self._closed:
            raise Refusal(503, "The model cannot be run here; the server is about to stop.", retry_after=5)
        held = self._held[kind]
        if kind == Work.predict and held + count > self.limits.queue:
            raise Refusal(
                503,
                f"{held:,} pictures wait already; no more than {self.limits.queue:,} may. Send it again later.",
                retry_after=1,
            )
        if kind != Work.predict and held + count > self.limits.side_queue:
            raise Refusal(
                503, f"{held:,} requests of this kind wait already. Send it again later.", retry_after=RETRY_AFTER
            )
        self._held[kind] += count
        self._count(kind)

    def _count(self, kind: Work) -> None:
        gauge = self.metrics.queue if kind == Work.predict else self.metrics.side_queue.labels(kind.value)
        gauge.set(self._held[kind])

    async def _one(self, name: str, data: bytes) -> Prediction:
        loop = asyncio.get_running_loop()
        seen = await self._decoded(partial(self._timed, data))
        self.metrics.pictures.inc()
        if isinstance(seen, str):
            self.metrics.faults.inc()
            return unreadable_prediction(name, seen)
        waiting = _Waiting(name, seen, loop.create_future())
        with self._more:
            self._waiting.append(waiting)
            self._more.notify()
        return await waiting.answer

    async def _decoded(self, work: Callable[[int | None], Decoded], *, urgent: bool = True) -> Decoded:
        assert self._ordinary is not None  # admitted, so started
        assert self._large is not None
        self._coming += urgent
        try:
            return await asyncio.wrap_future(self._ordinary.submit(1, partial(work, AT_ONCE), urgent=urgent))
        except LargeImage as large:
            pixels = large.pixels
        finally:
            self._coming -= urgent
        alone = self._large.submit(pixels, partial(_alone_in_memory, work), urgent=urgent)
        return await asyncio.wrap_future(alone)

    def _timed(self, data: bytes, max_decoded_pixels: int | None) -> Pixels | str:
        started = time.perf_counter()
        seen = self.pixels(data, max_decoded_pixels)
        self.metrics.decoding.observe(time.perf_counter() - started)
        return seen

    def _work(self) -> None:
        """Main loop of the engine's thread."""
        with threadpool_limits(1, user_api="blas"):  # NumPy's threads wait for cores that decode: 52 ms, not 0.3
            self._serve()

    def _serve(self) -> None:
        try:
            engine = self._warmed_up()
        except Exception as error:
            self.fault = error
            return
        self.engine = engine
        while (following := self._next(engine.batch_size)) is not None:
            if isinstance(following, _Errand):
                following.run()
            elif following:
                self._answer(engine, following)

    def _warmed_up(self) -> Engine:
        net = self.model.net
        sample = synthetic_sample(self.model.preprocessing.height, self.model.preprocessing.width)
        engine = choose_engine(net, count=MANY, sample=sample, device=self._device, progress=self._progress)
        for size in (1, engine.batch_size):
            self.model.predict_features(engine(np.resize(sample, (size, *sample.shape[1:]))))
        self._progress.say(f"Engine: {engine.name}.")
        return engine

    def _next(self, size: int) -> list[_Waiting] | _Errand | None:
        """What runs next: images that run together, work of another kind, or None at the end."""
        with self._more:
            while not self._closed:
                for queue in self._errands.values():
                    _drop_abandoned(queue)
                if (errand := self._next_errand()) is not None:
                    return errand
                if batch := self._next_batch(size):
                    return batch
                self._more.wait()
        return None

    def _next_batch(self, size: int) -> list[_Waiting]:
        """Images that run together; none where none waits."""
        with self._more:
            _drop_abandoned(self._waiting)
            if not self._waiting:
                return []
            until = time.monotonic() + self.limits.gather_ms / 1000
            while len(self._waiting) < size and self._coming > 0 and (left := until - time.monotonic()) > 0:
                self._more.wait(left)
            return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def _next_errand(self) -> _Errand | None:
        """Work of the kind that has waited longest for its turn; None where predictions come first."""
        now = time.monotonic()
        due = [kind for kind, queue in self._errands.items() if queue]
        if not due:
            return None
        _drop_abandoned(self._waiting)
        if self._waiting:
            since = min(self._errands[kind][0].since for kind in due)
            if now - max(since, self._last_errand) < SIDE_TURN:
                return None
        self._last_errand = now
        queue = self._errands.pop(due[0])
        self._errands[due[0]] = queue  # behind the other kinds
        return queue.popleft()

    def _answer(self, engine: Engine, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        try:
            chances, odd = self.model.predict_features(engine(np.stack([own.pixels for own in batch])))
            answers = [
                self.model.make_prediction(own.name, *said) for own, *said in zip(batch, chances, odd, strict=True)
            ]
        except Exception as error:  # an engine raises its own: the requests fail, the server goes on
            for own in batch:
                _tell(own.answer, None, error)
            return
        self.metrics.batch.observe(len(batch))
        self.metrics.running.observe(time.perf_counter() - started)
        for own, answer in zip(batch, answers, strict=True):
            _tell(own.answer, answer, None)


def _drop_abandoned(queue: deque[Queued]) -> None:
    """Forgets what nobody waits for."""
    kept = [own for own in queue if not own.answer.done()]
    if len(kept) < len(queue):
        queue.clear()
        queue.extend(kept)


def _alone_in_memory(work: Callable[[int | None], Result]) -> Result:
    """Something large, which leaves nothing behind: it would be kept for each thread."""
    try:
        return work(None)
    finally:
        give_back_freed_memory()


def _tell(answer: asyncio.Future[Result], result: Result | None, error: Exception | None) -> None:
    """Settles a future of an event loop from another thread; a loop that is closed has nobody who waits."""
    with suppress(RuntimeError):
        answer.get_loop().call_soon_threadsafe(_settle, answer, result, error)


def _settle(answer: asyncio.Future[Result], result: Result | None, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)  # type: ignore[arg-type]
