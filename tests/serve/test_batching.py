from __future__ import annotations

import asyncio
import io
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import jpeg, tiny_model, until

import headstart.serve.batching as services
from headstart.engine.device import give_back_freed_memory, keep_freed_memory
from headstart.model import Model
from headstart.prediction import Prediction
from headstart.serve.batching import InferenceService, TaskKind
from headstart.serve.errors import HttpError
from headstart.serve.limits import ServerLimits


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is measured or exported."""
    monkeypatch.setattr(services, "EXPECTED_IMAGES", 1)


def at_work(model: Model, use: Callable[[InferenceService], Coroutine[Any, Any, Any]], **limits: Any) -> Any:
    """Runs a service from start to close in a new event loop."""

    async def whole() -> Any:
        service = InferenceService(model, limits=ServerLimits(**limits))
        service.start()
        try:
            while not service.ready:
                await asyncio.sleep(0.005)
            return await use(service)
        finally:
            service.close()

    return asyncio.run(whole())


class Gate:
    """An engine that blocks until released, and records the batch sizes."""

    def __init__(self, model: Model) -> None:
        self.open = threading.Event()
        self.sizes: list[int] = []
        self.model, self.judge = model, model.predict_features
        self.shut = False
        self.before: Callable[[], object] = lambda: None
        vars(model)["predict_features"] = self

    def hold(self) -> None:
        self.shut = True
        self.sizes.clear()

    def __call__(self, features: Any) -> Any:
        self.sizes.append(len(features))
        self.before()
        if self.shut:
            assert self.open.wait(20)
        return self.judge(features)


async def held_prediction(service: InferenceService, gate: Gate, name: str = "held") -> asyncio.Future[Any]:
    """A prediction that runs until the gate is opened."""
    gate.hold()
    held = asyncio.ensure_future(service.predict([(name, jpeg(0))]))
    await until_true(lambda: gate.sizes)
    return held


def alike(one: Prediction, two: Prediction) -> bool:
    return dict(one.top) == pytest.approx(dict(two.top), abs=1e-6) and one.label == two.label


def test_predictions_are_in_order_and_an_unreadable_image_affects_no_other() -> None:
    model = tiny_model()
    data = [jpeg(i) for i in range(9)]
    expected = model.predict(data, top=3)
    sent = [(f"{i}.jpg", own) for i, own in enumerate(data)]
    sent.insert(4, ("bad.jpg", b"no image"))
    answers: list[Prediction] = at_work(model, lambda service: service.predict(sent))
    assert [own.path for own in answers] == [name for name, _ in sent]
    assert answers[4].error == "not an image: a text file"
    good = [own for own in answers if own.error is None]
    assert all(alike(one, two) for one, two in zip(good, expected, strict=True))


def test_images_that_arrive_during_a_batch_form_the_next_batch() -> None:
    model = tiny_model()
    gate = Gate(model)

    async def use(service: InferenceService) -> None:
        gate.shut = True
        gate.sizes.clear()
        first = asyncio.ensure_future(service.predict([("first", jpeg(0))]))
        while not gate.sizes:
            await asyncio.sleep(0.005)
        others = [asyncio.ensure_future(service.predict([(str(i), jpeg(i))])) for i in range(1, 11)]
        while len(service._image_queue) < 10:
            await asyncio.sleep(0.005)
        gate.open.set()
        assert [own.path for (own,) in await asyncio.gather(first, *others)] == ["first", *map(str, range(1, 11))]

    at_work(model, use)
    assert gate.sizes == [1, 10]


def slow_to_decode(model: Model) -> threading.Event:
    """Event until which images whose bytes end in "slow" are not decoded."""
    decode, slow = model.preprocess, threading.Event()

    def pixels(data: Any, **options: Any) -> Any:
        if data.endswith(b"slow"):
            slow.wait(20)
        return decode(data, **options)

    vars(model)["preprocess"] = pixels
    return slow


def test_a_batch_waits_for_images_being_decoded_and_a_single_image_does_not_wait() -> None:
    model = tiny_model()
    gate = Gate(model)
    slow = slow_to_decode(model)

    async def use(service: InferenceService) -> None:
        gate.sizes.clear()
        began = time.monotonic()
        await service.predict([("alone", jpeg(0))])
        assert time.monotonic() - began < 10
        late = asyncio.ensure_future(service.predict([("late", jpeg(1) + b"slow")]))
        soon = asyncio.ensure_future(service.predict([("soon", jpeg(2))]))
        await asyncio.sleep(0.2)
        assert gate.sizes == [1]
        slow.set()
        await asyncio.gather(late, soon)

    at_work(model, use, batch_wait_ms=60_000)
    assert gate.sizes == [1, 2]


def test_an_image_waits_for_others_at_most_batch_wait_ms() -> None:
    model = tiny_model()
    gate = Gate(model)
    slow = slow_to_decode(model)

    async def use(service: InferenceService) -> None:
        gate.sizes.clear()
        late = asyncio.ensure_future(service.predict([("late", jpeg(1) + b"slow")]))
        (soon,) = await service.predict([("soon", jpeg(2))])
        assert soon.label is not None
        assert not late.done()
        slow.set()
        await late

    at_work(model, use, batch_wait_ms=20)
    assert gate.sizes == [1, 1]


def test_a_full_queue_refuses_images_until_it_has_space() -> None:
    model = tiny_model()
    gate = Gate(model)

    async def use(service: InferenceService) -> None:
        gate.shut = True
        held = asyncio.ensure_future(service.predict([(str(i), jpeg(i)) for i in range(4)]))
        await asyncio.sleep(0)
        with pytest.raises(HttpError, match="queue is full: 4 of 4 images") as refused:
            await service.predict([("more", jpeg(9))])
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        gate.open.set()
        await held
        assert service.num_pending == 0
        await service.predict([("more", jpeg(9))])

    at_work(model, use, max_queued_images=4)


def test_a_timeout_cancels_the_request_and_frees_its_resources() -> None:
    model = tiny_model()
    gate = Gate(model)

    async def use(service: InferenceService) -> None:
        gate.shut = True
        with pytest.raises(HttpError, match=r"within 1 s") as refused:
            await service.predict([("a", jpeg(0)), ("b", jpeg(1))])
        assert refused.value.status == 504
        assert service.num_pending == 0
        gate.shut = False
        gate.open.set()
        (answer,) = await service.predict([("c", jpeg(2))])
        assert answer.label is not None

    at_work(model, use, response_timeout=1)


def test_an_engine_error_fails_only_the_requests_of_its_batch() -> None:
    model = tiny_model()
    judge = model.predict_features

    async def use(service: InferenceService) -> None:
        def fail(features: Any) -> Any:
            raise MemoryError("no memory")

        vars(model)["predict_features"] = fail
        with pytest.raises(MemoryError):
            await service.predict([("a", jpeg(0))])
        vars(model)["predict_features"] = judge
        (answer,) = await service.predict([("b", jpeg(0))])
        assert answer.label is not None
        assert service.num_pending == 0

    at_work(model, use)


def nothing(max_decoded_pixels: int | None) -> None:
    """An image that is already decoded."""


def aside(service: InferenceService, work: Callable[[], Any], kind: TaskKind = TaskKind.explain) -> asyncio.Future[Any]:
    return asyncio.ensure_future(service.run_side_task(kind, nothing, lambda _seen, _check: work()))


async def until_true(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_side_tasks_run_on_the_engine_thread() -> None:
    async def use(service: InferenceService) -> None:
        assert await aside(service, lambda: threading.current_thread().name) == "headstart-engine"
        with pytest.raises(ZeroDivisionError):
            await aside(service, lambda: 1 // 0)
        assert service.num_pending == 0

    at_work(tiny_model(), use)


def test_predictions_have_priority_and_other_kinds_run_round_robin() -> None:
    model = tiny_model()
    gate, ran = Gate(model), []

    async def use(service: InferenceService) -> None:
        first = await held_prediction(service, gate, "first")
        others = [aside(service, partial(ran.append, f"explain {i}")) for i in range(3)]
        await until_true(lambda: len(service._task_queues[TaskKind.explain]) == 3)
        others.append(aside(service, partial(ran.append, "nearest"), TaskKind.nearest))
        await until_true(lambda: service._task_queues[TaskKind.nearest])
        late = asyncio.ensure_future(service.predict([("late", jpeg(1))]))
        late.add_done_callback(lambda _: None)
        await until_true(lambda: service._image_queue)
        gate.before = lambda: ran.append("predict")
        gate.open.set()
        await asyncio.gather(first, late, *others)

    at_work(model, use)
    assert ran == ["predict", "explain 0", "nearest", "explain 1", "explain 2"]


def test_constant_predictions_do_not_starve_side_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "SIDE_TASK_INTERVAL", 0.1)
    model = tiny_model()
    gate = Gate(model)
    gate.before = lambda: time.sleep(0.02)

    async def use(service: InferenceService) -> None:
        over = False

        async def client() -> None:
            while not over:
                await service.predict([("a", jpeg(0))])

        clients = [asyncio.ensure_future(client()) for _ in range(3 * service.engine.batch_size)]  # type: ignore[union-attr]
        assert await asyncio.wait_for(aside(service, lambda: "ran"), 15) == "ran"
        over = True
        await asyncio.gather(*clients)

    at_work(model, use)


def test_cancelled_side_tasks_do_not_run_or_delay_predictions() -> None:
    """Many heat maps of disconnected clients do not run, and the next prediction is not delayed."""
    model = tiny_model()
    gate, ran = Gate(model), []

    async def use(service: InferenceService) -> None:
        held = await held_prediction(service, gate)
        flood = [
            aside(service, lambda: (ran.append(1), time.sleep(0.5))) for _ in range(service.limits.max_queued_tasks)
        ]
        await until_true(lambda: len(service._task_queues[TaskKind.explain]) == service.limits.max_queued_tasks)
        for own in flood:
            own.cancel()
        gone = asyncio.ensure_future(service.predict([("gone", jpeg(1))]))
        await until_true(lambda: service._image_queue)
        gone.cancel()
        await asyncio.sleep(0.02)
        gate.open.set()
        began = time.monotonic()
        await held
        await service.predict([("next", jpeg(2))])
        assert time.monotonic() - began < 5
        assert service.num_pending == 0

    at_work(model, use)
    assert not ran
    assert gate.sizes == [1, 1]


def test_a_side_task_is_cancelled_between_its_steps() -> None:
    steps: list[str] = []
    begun, left = threading.Event(), threading.Event()

    def work(_seen: None, check: Callable[[], None]) -> None:
        begun.set()
        assert left.wait(20)
        for name in ("first", "second"):
            check()
            steps.append(name)

    async def use(service: InferenceService) -> None:
        asked = asyncio.ensure_future(service.run_side_task(TaskKind.explain, nothing, work))
        await until_true(begun.is_set)
        asked.cancel()
        await asyncio.sleep(0.02)
        left.set()
        assert await aside(service, lambda: "next") == "next"

    at_work(tiny_model(), use)
    assert not steps


def test_predictions_run_between_the_steps_of_a_side_task() -> None:
    model = tiny_model()
    gate, order = Gate(model), []
    begun, go = threading.Event(), threading.Event()

    def work(_seen: None, check: Callable[[], None]) -> None:
        begun.set()
        assert go.wait(20)
        order.append("first step")
        check()
        order.append("second step")

    async def use(service: InferenceService) -> None:
        asked = asyncio.ensure_future(service.run_side_task(TaskKind.explain, nothing, work))
        await until_true(begun.is_set)
        gate.before = lambda: order.append("image")
        soon = asyncio.ensure_future(service.predict([("soon", jpeg(0))]))
        await until_true(lambda: service._image_queue)
        go.set()
        await asyncio.gather(asked, soon)

    at_work(model, use)
    assert order == ["first step", "image", "second step"]


def test_each_kind_of_task_has_a_separate_limit_with_retry_after() -> None:
    model = tiny_model()
    gate = Gate(model)

    async def use(service: InferenceService) -> None:
        held = await held_prediction(service, gate)
        waiting = [aside(service, int) for _ in range(2)]
        await until_true(lambda: service.num_pending == 3)
        with pytest.raises(HttpError, match="2 requests of this kind") as refused:
            await aside(service, int)
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "2"})
        waiting.append(aside(service, int, TaskKind.nearest))
        waiting.append(asyncio.ensure_future(service.predict([("more", jpeg(1))])))
        gate.open.set()
        await asyncio.gather(held, *waiting)

    at_work(model, use, max_queued_tasks=2)


def test_tasks_that_wait_too_long_do_not_run() -> None:
    model = tiny_model()
    gate, ran = Gate(model), []

    async def use(service: InferenceService) -> None:
        held = await held_prediction(service, gate)
        late = aside(service, partial(ran.append, "late"))
        for own in (held, late):
            with pytest.raises(HttpError) as refused:
                await own
            assert refused.value.status == 504
        gate.open.set()
        await aside(service, partial(ran.append, "in time"))

    at_work(model, use, response_timeout=0.5)
    assert ran == ["in time"]


def test_images_of_predictions_are_decoded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.serve.batching.usable_cpus", lambda: 1)
    order: list[str] = []
    model = tiny_model()
    decode, begun, go = model.preprocess, threading.Event(), threading.Event()

    def pixels(data: Any, **options: Any) -> Any:
        order.append("predict")
        return decode(data, **options)

    vars(model)["preprocess"] = pixels

    def hold(max_decoded_pixels: int | None) -> None:
        begun.set()
        assert go.wait(20)

    async def use(service: InferenceService) -> None:
        held = asyncio.ensure_future(service.run_decode(TaskKind.correct, hold))
        await until_true(begun.is_set)
        other = asyncio.ensure_future(service.run_decode(TaskKind.correct, lambda _at_once: order.append("other")))
        await asyncio.sleep(0.02)
        soon = asyncio.ensure_future(service.predict([("soon", jpeg(0))]))
        await asyncio.sleep(0.02)
        go.set()
        await asyncio.gather(held, other, soon)

    at_work(model, use)
    assert order == ["predict", "other"]


def test_the_first_request_starts_the_service_and_a_closed_service_refuses() -> None:
    async def use() -> None:
        service = InferenceService(tiny_model())
        (answer,) = await service.predict([("a", jpeg(0))])
        assert answer.label is not None
        service.close()
        with pytest.raises(HttpError, match="about to stop"):
            await service.predict([("a", jpeg(0))])
        service.start()
        (again,) = await service.predict([("a", jpeg(0))])
        assert alike(again, answer)
        service.close()

    asyncio.run(use())


def test_a_closed_event_loop_does_not_end_the_service() -> None:
    """Each call has a separate event loop, as with some test clients; one closes during its request."""
    model = tiny_model()
    gate = Gate(model)
    service = InferenceService(model)
    service.start()
    until(lambda: service.ready)
    gate.hold()

    async def leave() -> None:
        asked = asyncio.ensure_future(service.predict([("a", jpeg(0))]))
        await until_true(lambda: gate.sizes)
        assert not asked.done()

    asyncio.run(leave())
    gate.open.set()
    (answer,) = asyncio.run(service.predict([("b", jpeg(1))]))
    assert answer.label is not None
    service.close()


def test_an_engine_that_cannot_start_is_reported() -> None:
    model = tiny_model()

    def fail(features: Any) -> Any:
        raise RuntimeError("no such kernel")

    vars(model)["predict_features"] = fail
    service = InferenceService(model)
    service.start()
    until(lambda: service.startup_error is not None)
    assert not service.ready
    service.close()


def raw(width: int, height: int) -> bytes:
    """A transparent image that is fast to encode and takes 16 bytes per pixel to decode."""
    data = io.BytesIO()
    Image.new("RGBA", (width, height), "red").save(data, "TIFF")
    return data.getvalue()


def test_large_images_share_a_pixel_budget_and_delay_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "SMALL_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr("headstart.serve.batching.usable_cpus", lambda: 4)
    model = tiny_model()
    decode, shut, under_way, most = model.preprocess, threading.Event(), 0, 0
    lock = threading.Lock()

    def pixels(data: Any, *, max_decoded_pixels: int | None, **options: Any) -> Any:
        nonlocal under_way, most
        if max_decoded_pixels is not None:
            return decode(data, max_decoded_pixels=max_decoded_pixels, **options)
        with lock:
            under_way += 1
            most = max(most, under_way)
        assert shut.wait(20)
        with lock:
            under_way -= 1
        return decode(data, **options)

    vars(model)["preprocess"] = pixels

    async def use(service: InferenceService) -> None:
        large = asyncio.ensure_future(service.predict([(str(i), raw(200, 100)) for i in range(6)]))
        while under_way < 2:
            await asyncio.sleep(0.005)
        given_up = asyncio.ensure_future(service.predict([("gone", raw(200, 100))]))
        await asyncio.sleep(0.05)
        given_up.cancel()
        (small,) = await service.predict([("small", jpeg(1))])
        assert small.label is not None
        assert not large.done()
        shut.set()
        assert all(own.label is not None for own in await large)
        (refused,) = await service.predict([("too large", raw(500, 101))])
        assert str(refused.error).startswith("too large: 500 x 101")

    at_work(model, use, max_pixels=50_000)
    assert most == 2


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="glibc only")
def test_memory_of_a_large_image_is_freed() -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    keep_freed_memory()
    large = raw(4_000, 3_000)

    async def use(service: InferenceService) -> None:
        give_back_freed_memory()
        before = resident()
        (seen,) = await service.predict([("large", large)])
        assert seen.label is not None
        assert resident() < before + 70, "glibc keeps up to 64 MB at the top of a thread's own memory"

    at_work(tiny_model(), use)
