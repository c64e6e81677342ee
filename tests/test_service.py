from __future__ import annotations

import asyncio
import io
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import jpeg, tiny_model, until

import headstart.serve.service as services
from headstart.backbone.device import give_back_freed_memory, keep_freed_memory
from headstart.model import Model, Prediction
from headstart.serve.limits import Limits
from headstart.serve.problem import Refusal
from headstart.serve.service import Service


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured or exported."""
    monkeypatch.setattr(services, "MANY", 1)


def at_work(model: Model, use: Callable[[Service], Coroutine[Any, Any, Any]], **limits: Any) -> Any:
    """A service from its start to its end, in a loop of its own."""

    async def whole() -> Any:
        service = Service(model, limits=Limits(**limits))
        service.start()
        try:
            while not service.ready:
                await asyncio.sleep(0.005)
            return await use(service)
        finally:
            service.close()

    return asyncio.run(whole())


class Gate:
    """An engine that stands still until it is let go, and remembers how many pictures each batch had."""

    def __init__(self, model: Model) -> None:
        self.open = threading.Event()
        self.sizes: list[int] = []
        self.model, self.judge = model, model.judge
        self.shut = False
        model.judge = self  # type: ignore[method-assign, assignment]

    def __call__(self, features: Any) -> Any:
        self.sizes.append(len(features))
        if self.shut:
            assert self.open.wait(20)
        return self.judge(features)


def alike(one: Prediction, two: Prediction) -> bool:
    return dict(one.top) == pytest.approx(dict(two.top), abs=1e-6) and one.label == two.label


def test_answers_are_those_of_predict_in_order_and_a_bad_picture_spoils_no_other() -> None:
    model = tiny_model()
    data = [jpeg(i) for i in range(9)]
    expected = model.predict(data, top=3)
    sent = [(f"{i}.jpg", own) for i, own in enumerate(data)]
    sent.insert(4, ("bad.jpg", b"no picture"))
    answers: list[Prediction] = at_work(model, lambda service: service.predict(sent))
    assert [own.path for own in answers] == [name for name, _ in sent]
    assert answers[4].error == "not an image: a text file"
    good = [own for own in answers if own.error is None]
    assert all(alike(one, two) for one, two in zip(good, expected, strict=True))


def test_pictures_that_arrive_while_the_engine_runs_run_together() -> None:
    model = tiny_model()
    gate = Gate(model)

    async def use(service: Service) -> None:
        gate.shut = True
        gate.sizes.clear()
        first = asyncio.ensure_future(service.predict([("first", jpeg(0))]))
        while not gate.sizes:
            await asyncio.sleep(0.005)
        others = [asyncio.ensure_future(service.predict([(str(i), jpeg(i))])) for i in range(1, 11)]
        while len(service._waiting) < 10:
            await asyncio.sleep(0.005)
        gate.open.set()
        assert [own.path for (own,) in await asyncio.gather(first, *others)] == ["first", *map(str, range(1, 11))]

    at_work(model, use)
    assert gate.sizes == [1, 10]


def slow_to_decode(model: Model) -> threading.Event:
    """Pictures whose bytes end in "slow" are not decoded before it is set."""
    decode, slow = model.pixels, threading.Event()

    def pixels(data: Any, **options: Any) -> Any:
        if data.endswith(b"slow"):
            slow.wait(20)
        return decode(data, **options)

    model.pixels = pixels  # type: ignore[method-assign]
    return slow


def test_a_batch_waits_for_what_is_being_decoded_and_a_lone_picture_for_nothing() -> None:
    model = tiny_model()
    gate = Gate(model)
    slow = slow_to_decode(model)

    async def use(service: Service) -> None:
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

    at_work(model, use, gather_ms=60_000)
    assert gate.sizes == [1, 2]


def test_no_picture_waits_for_others_longer_than_agreed() -> None:
    model = tiny_model()
    gate = Gate(model)
    slow = slow_to_decode(model)

    async def use(service: Service) -> None:
        gate.sizes.clear()
        late = asyncio.ensure_future(service.predict([("late", jpeg(1) + b"slow")]))
        (soon,) = await service.predict([("soon", jpeg(2))])
        assert soon.label is not None
        assert not late.done()
        slow.set()
        await late

    at_work(model, use, gather_ms=20)
    assert gate.sizes == [1, 1]


def test_a_full_queue_refuses_and_takes_again_once_it_is_empty() -> None:
    model = tiny_model()
    gate = Gate(model)

    async def use(service: Service) -> None:
        gate.shut = True
        held = asyncio.ensure_future(service.predict([(str(i), jpeg(i)) for i in range(4)]))
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="4 pictures wait") as refused:
            await service.predict([("more", jpeg(9))])
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        gate.open.set()
        await held
        assert service.held == 0
        await service.predict([("more", jpeg(9))])

    at_work(model, use, queue=4)


def test_what_takes_too_long_is_given_up_and_leaves_nothing_behind() -> None:
    model = tiny_model()
    gate = Gate(model)

    async def use(service: Service) -> None:
        gate.shut = True
        with pytest.raises(Refusal, match=r"within 0\.1 s") as refused:
            await service.predict([("a", jpeg(0)), ("b", jpeg(1))])
        assert refused.value.status == 504
        assert service.held == 0
        gate.shut = False
        gate.open.set()
        (answer,) = await service.predict([("c", jpeg(2))])
        assert answer.label is not None

    at_work(model, use, request_seconds=0.1)


def test_an_engine_that_fails_once_fails_those_requests_alone() -> None:
    model = tiny_model()
    judge = model.judge

    async def use(service: Service) -> None:
        def fail(features: Any) -> Any:
            raise MemoryError("no memory")

        model.judge = fail  # type: ignore[method-assign]
        with pytest.raises(MemoryError):
            await service.predict([("a", jpeg(0))])
        model.judge = judge  # type: ignore[method-assign]
        (answer,) = await service.predict([("b", jpeg(0))])
        assert answer.label is not None
        assert service.held == 0

    at_work(model, use)


def test_other_heavy_work_has_its_turn_in_the_engines_thread() -> None:
    async def use(service: Service) -> None:
        assert await service.alone(lambda: threading.current_thread().name) == "headstart-engine"
        with pytest.raises(ZeroDivisionError):
            await service.alone(lambda: 1 // 0)
        assert service.held == 0

    at_work(tiny_model(), use)


def test_an_engine_that_cannot_start_is_said() -> None:
    model = tiny_model()

    def fail(features: Any) -> Any:
        raise RuntimeError("no such kernel")

    model.judge = fail  # type: ignore[method-assign]
    service = Service(model)
    service.start()
    until(lambda: service.fault is not None)
    assert not service.ready
    service.close()


def raw(width: int, height: int) -> bytes:
    """A picture with transparency that is quickly written and takes 16 bytes a pixel while it is decoded."""
    data = io.BytesIO()
    Image.new("RGBA", (width, height), "red").save(data, "TIFF")
    return data.getvalue()


def test_large_pictures_are_decoded_within_their_bound_and_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "AT_ONCE", 10_000)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    model = tiny_model()
    decode, shut, under_way, most = model.pixels, threading.Event(), 0, 0
    lock = threading.Lock()

    def pixels(data: Any, *, at_once: int | None, **options: Any) -> Any:
        nonlocal under_way, most
        if at_once is not None:
            return decode(data, at_once=at_once, **options)
        with lock:
            under_way += 1
            most = max(most, under_way)
        assert shut.wait(20)
        with lock:
            under_way -= 1
        return decode(data, **options)

    model.pixels = pixels  # type: ignore[method-assign]

    async def use(service: Service) -> None:
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

    at_work(model, use, pixels=50_000)
    assert most == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="glibc only")
def test_a_large_picture_leaves_no_memory_behind() -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    keep_freed_memory()
    large = raw(4_000, 3_000)

    async def use(service: Service) -> None:
        give_back_freed_memory()
        before = resident()
        (seen,) = await service.predict([("large", large)])
        assert seen.label is not None
        assert resident() < before + 70, "glibc keeps up to 64 MB at the top of a thread's own memory"

    at_work(tiny_model(), use)
