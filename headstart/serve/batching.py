"""Dynamic batching: images of concurrent requests run as one batch, with priority over all other tasks."""

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
from typing import Any, Final, TypeVar, final

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
from headstart.serve.decode_budget import DecodeBudget
from headstart.serve.errors import HttpError
from headstart.serve.limits import SMALL_IMAGE_PIXELS, ServerLimits
from headstart.serve.middleware import ServerState
from headstart.serve.prometheus import Metrics

EXPECTED_IMAGES = 1_000_000
"""Assumed number of images over the life of a server; large, so that the fastest engine is chosen."""

MAX_DECODE_THREADS: Final = 8

SIDE_TASK_INTERVAL: Final = 2.0
"""Seconds after which one side task runs even if images wait, so that constant load does not starve heat maps."""

RETRY_AFTER: Final = 2
"""Seconds in the Retry-After header of a refused side task."""

CLOSE_TIMEOUT: Final = 10.0
"""Seconds for which ``close`` waits for the engine thread."""

Decoded = TypeVar("Decoded")
Result = TypeVar("Result")


class TaskKind(StrEnum):
    """Kinds of tasks. Each kind has a separate queue; predictions run first, the other kinds round robin."""

    predict = "predict"
    explain = "explain"
    nearest = "nearest"
    correct = "correct"


class TaskCancelled(Exception):
    """The result is no longer needed: the client has disconnected, or the request has timed out."""


@dataclass(eq=False)
class _QueuedImage:
    """A decoded image in the queue, and the future of its prediction."""

    name: str
    pixels: Pixels
    answer: asyncio.Future[Prediction]


@dataclass(eq=False)
class _SideTask:
    """A task other than a prediction, and the future of its result."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]
    queued_at: float

    def run(self) -> None:
        try:
            result = self.work()
        except Exception as error:  # it is raised where the result is awaited; the engine thread continues
            _resolve_threadsafe(self.answer, None, error)
        else:
            _resolve_threadsafe(self.answer, result, None)


Queued = TypeVar("Queued", _QueuedImage, _SideTask)


@final
class InferenceService:
    """A model behind a queue: a thread pool decodes images, and one engine thread runs the model in batches.

    The threads start with ``start`` or with the first request. They end with ``close`` or with the process.

    Args:
        model: the classifier.
        run: run folder of the model, if there is one.
        limits: limits of the server.
        device: see ``device.resolve_device``.
        progress: reports which engine was chosen.
    """

    def __init__(
        self,
        model: Model,
        *,
        run: Path | None = None,
        limits: ServerLimits | None = None,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.run = run
        self.limits = limits or ServerLimits()
        self.metrics = Metrics()
        self.state = ServerState()
        self.engine: Engine | None = None
        self.startup_error: Exception | None = None
        self._device, self._progress = device, progress or SilentProgress()
        self._start_lock = threading.Lock()
        self._process_id = 0
        self._reset()

    def _reset(self) -> None:
        """Empty queues and no threads, as before the first ``start`` and in a forked child."""
        self.engine, self.startup_error = None, None
        self._num_pending: Counter[TaskKind] = Counter()
        self._num_decoding = 0
        self._image_queue: deque[_QueuedImage] = deque()
        self._task_queues: dict[TaskKind, deque[_SideTask]] = {
            kind: deque() for kind in TaskKind if kind != TaskKind.predict
        }
        self._last_side_task = 0.0
        self._changed = threading.Condition()  # reentrant
        self._closed = False
        self._decode_pool: ThreadPoolExecutor | None = None
        self._small_images: DecodeBudget | None = None
        self._large_images: DecodeBudget | None = None
        self._engine_thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine is warmed up and new requests are accepted."""
        return self.engine is not None and not self.state.draining

    @property
    def num_pending(self) -> int:
        """Images and side tasks that wait or are processed."""
        return self._num_pending.total()

    def start(self) -> None:
        """Starts the threads unless they run. The engine thread then chooses an engine and warms it up.

        Threads do not survive a fork: called in a child process, this starts new ones.
        """
        with self._start_lock:
            if self._engine_thread is not None and self._process_id == os.getpid() and not self._closed:
                return
            self._reset()
            self._process_id = os.getpid()
            num_threads = min(MAX_DECODE_THREADS, usable_cpus())
            self._decode_pool = ThreadPoolExecutor(num_threads, "headstart-decode")
            self._small_images = DecodeBudget(self._decode_pool, num_threads)
            self._large_images = DecodeBudget(self._decode_pool, self.limits.max_pixels)
            self._engine_thread = threading.Thread(target=self._engine_main, name="headstart-engine", daemon=True)
            self._engine_thread.start()
            atexit.register(self.close)

    def close(self) -> None:
        """Ends the threads. Queued tasks are not answered, and new ones are refused."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._engine_thread is not None and self._process_id == os.getpid():
            self._engine_thread.join(timeout=min(CLOSE_TIMEOUT, self.limits.response_timeout))
        if self._decode_pool is not None:
            self._decode_pool.shutdown(wait=False, cancel_futures=True)

    async def predict(self, images: Sequence[tuple[str, bytes]]) -> list[Prediction]:
        """Classifies images, in batches with the images of other requests.

        Args:
            images: N pairs of name and encoded image.

        Returns:
            N predictions with all classes, in order. An image that cannot be read has its error in its prediction.

        Raises:
            HttpError: the queue is full (503), or the result took too long (504).
        """
        async with self._admitted(TaskKind.predict, len(images)):
            return list(await asyncio.gather(*(self._predict_one(name, data) for name, data in images)))

    async def run_decode(self, kind: TaskKind, work: Callable[[int | None], Decoded]) -> Decoded:
        """Runs a function that decodes one image, in the decode threads.

        Args:
            kind: kind of the task; ``ServerLimits.max_queued_tasks`` applies to each kind separately.
            work: receives the number of pixels that it may decode at once, see ``decode.decode``.

        Raises:
            HttpError: as ``predict``; other exceptions of ``work`` are passed on.
        """
        async with self._admitted(kind):
            return await self._decode(work, urgent=False)

    async def run_side_task(
        self,
        kind: TaskKind,
        decode: Callable[[int | None], Decoded],
        work: Callable[[Decoded, Callable[[], None]], Result],
    ) -> Result:
        """Decodes an image, then runs a function on the engine thread, between two batches.

        Args:
            kind: as for ``run_decode``.
            decode: as ``work`` of ``run_decode``.
            work: receives the result of ``decode``, and a checkpoint function to call between its steps. A checkpoint
                runs the images that wait, and raises ``TaskCancelled`` if the result is no longer needed.

        Raises:
            HttpError: as ``predict``; other exceptions of ``decode`` and ``work`` are passed on.
        """
        async with self._admitted(kind):
            decoded = await self._decode(decode, urgent=False)
            answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

            def checkpoint() -> None:
                if self.engine is not None and (batch := self._next_batch(self.engine.batch_size)):
                    self._run_batch(self.engine, batch)
                if answer.done():
                    raise TaskCancelled

            task = _SideTask(partial(work, decoded, checkpoint), answer, time.monotonic())
            with self._changed:
                self._task_queues[kind].append(task)
                self._changed.notify()
            return await answer

    def pixels(self, data: bytes, max_decoded_pixels: int | None) -> Pixels | str:
        """Network input of an encoded image, within the limits; see ``Model.preprocess``."""
        return self.model.preprocess(data, max_pixels=self.limits.max_pixels, max_decoded_pixels=max_decoded_pixels)

    @asynccontextmanager
    async def _admitted(self, kind: TaskKind, count: int = 1) -> AsyncIterator[None]:
        """Counts tasks while they are pending, and ends them after ``response_timeout``."""
        if self._engine_thread is None or self._process_id != os.getpid():
            self.start()  # mounted in another application, whose lifespan does not include ours
        self._check_capacity(kind, count)
        num_pending, seconds = self._num_pending, self.limits.response_timeout
        num_pending[kind] += count
        self._update_gauge(kind)
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise HttpError(504, f"No result within {seconds:g} s. Send fewer or smaller images per request.") from None
        finally:
            num_pending[kind] -= count
            self._update_gauge(kind)

    def _check_capacity(self, kind: TaskKind, count: int) -> None:
        if self.startup_error is not None or self._closed:
            raise HttpError(503, "The model cannot be run on this server, which is about to stop.", retry_after=5)
        pending = self._num_pending[kind]
        if kind == TaskKind.predict and pending + count > self.limits.max_queued_images:
            raise HttpError(
                503,
                f"The queue is full: {pending:,} of {self.limits.max_queued_images:,} images. Try again later.",
                retry_after=1,
            )
        if kind != TaskKind.predict and pending + count > self.limits.max_queued_tasks:
            raise HttpError(
                503, f"The queue is full: {pending:,} requests of this kind. Try again later.", retry_after=RETRY_AFTER
            )

    def _update_gauge(self, kind: TaskKind) -> None:
        gauge = self.metrics.queue if kind == TaskKind.predict else self.metrics.task_queue.labels(kind.value)
        gauge.set(self._num_pending[kind])

    async def _predict_one(self, name: str, data: bytes) -> Prediction:
        loop = asyncio.get_running_loop()
        pixels = await self._decode(partial(self._timed_pixels, data))
        self.metrics.images.inc()
        if isinstance(pixels, str):
            self.metrics.unreadable.inc()
            return unreadable_prediction(name, pixels)
        image = _QueuedImage(name, pixels, loop.create_future())
        with self._changed:
            self._image_queue.append(image)
            self._changed.notify()
        return await image.answer

    async def _decode(self, work: Callable[[int | None], Decoded], *, urgent: bool = True) -> Decoded:
        """Runs ``work`` as for a small image; if that raises ``LargeImage``, within the budget for large images."""
        assert self._small_images is not None  # set by ``start``, before anything is admitted
        assert self._large_images is not None
        self._num_decoding += urgent
        try:
            job = self._small_images.submit(1, partial(work, SMALL_IMAGE_PIXELS), urgent=urgent)
            return await asyncio.wrap_future(job)
        except LargeImage as large:
            pixels = large.pixels
        finally:
            self._num_decoding -= urgent
        job = self._large_images.submit(pixels, partial(_run_and_release_memory, work), urgent=urgent)
        return await asyncio.wrap_future(job)

    def _timed_pixels(self, data: bytes, max_decoded_pixels: int | None) -> Pixels | str:
        started = time.perf_counter()
        pixels = self.pixels(data, max_decoded_pixels)
        self.metrics.decoding.observe(time.perf_counter() - started)
        return pixels

    def _engine_main(self) -> None:
        """Engine thread main loop."""
        # NumPy's BLAS threads would spin for cores that the decode threads use: 52 ms a batch instead of 0.3 ms.
        with threadpool_limits(1, user_api="blas"):
            try:
                engine = self._warm_up()
            except Exception as error:
                self.startup_error = error
                return
            self.engine = engine
            while (job := self._next_job(engine.batch_size)) is not None:
                if isinstance(job, _SideTask):
                    job.run()
                elif job:
                    self._run_batch(engine, job)

    def _warm_up(self) -> Engine:
        """Chooses an engine, and runs the smallest and the largest batch once."""
        net = self.model.net
        sample = synthetic_sample(self.model.preprocessing.height, self.model.preprocessing.width)
        engine = choose_engine(net, count=EXPECTED_IMAGES, sample=sample, device=self._device, progress=self._progress)
        for size in (1, engine.batch_size):
            self.model.predict_features(engine(np.resize(sample, (size, *sample.shape[1:]))))
        self._progress.say(f"Engine: {engine.name}.")
        return engine

    def _next_job(self, batch_size: int) -> list[_QueuedImage] | _SideTask | None:
        """Waits for the next batch or side task; None after ``close``."""
        with self._changed:
            while not self._closed:
                for queue in self._task_queues.values():
                    _drop_cancelled(queue)
                if (task := self._next_side_task()) is not None:
                    return task
                if batch := self._next_batch(batch_size):
                    return batch
                self._changed.wait()
        return None

    def _next_batch(self, size: int) -> list[_QueuedImage]:
        """Up to ``size`` images that wait; waits briefly for images that are being decoded."""
        with self._changed:
            _drop_cancelled(self._image_queue)
            if not self._image_queue:
                return []
            until = time.monotonic() + self.limits.batch_wait_ms / 1000
            while len(self._image_queue) < size and self._num_decoding > 0 and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return [self._image_queue.popleft() for _ in range(min(size, len(self._image_queue)))]

    def _next_side_task(self) -> _SideTask | None:
        """First task of the kind whose turn it is; None while images wait, except every ``SIDE_TASK_INTERVAL``."""
        now = time.monotonic()
        due = [kind for kind, queue in self._task_queues.items() if queue]
        if not due:
            return None
        _drop_cancelled(self._image_queue)
        if self._image_queue:
            oldest = min(self._task_queues[kind][0].queued_at for kind in due)
            if now - max(oldest, self._last_side_task) < SIDE_TASK_INTERVAL:
                return None
        self._last_side_task = now
        queue = self._task_queues.pop(due[0])
        self._task_queues[due[0]] = queue  # moved behind the other kinds: round robin
        return queue.popleft()

    def _run_batch(self, engine: Engine, batch: list[_QueuedImage]) -> None:
        started = time.perf_counter()
        try:
            scored = self.model.predict_features(engine(np.stack([image.pixels for image in batch])))
            answers = [self.model.make_prediction(image.name, *row) for image, *row in zip(batch, *scored, strict=True)]
        except Exception as error:  # engines raise errors of many types: these requests fail, the server continues
            for image in batch:
                _resolve_threadsafe(image.answer, None, error)
            return
        self.metrics.batch.observe(len(batch))
        self.metrics.running.observe(time.perf_counter() - started)
        for image, answer in zip(batch, answers, strict=True):
            _resolve_threadsafe(image.answer, answer, None)


def _drop_cancelled(queue: deque[Queued]) -> None:
    """Removes the entries whose result is no longer needed."""
    kept = [entry for entry in queue if not entry.answer.done()]
    if len(kept) < len(queue):
        queue.clear()
        queue.extend(kept)


def _run_and_release_memory(work: Callable[[int | None], Result]) -> Result:
    """Runs a job that needs much memory; the allocator would keep that memory for each thread."""
    try:
        return work(None)
    finally:
        give_back_freed_memory()


def _resolve_threadsafe(answer: asyncio.Future[Result], result: Result | None, error: Exception | None) -> None:
    """Resolves a future of an event loop from another thread; does nothing if the loop is closed."""
    with suppress(RuntimeError):
        answer.get_loop().call_soon_threadsafe(_resolve, answer, result, error)


def _resolve(answer: asyncio.Future[Result], result: Result | None, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)  # type: ignore[arg-type]
