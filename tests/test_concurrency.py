from __future__ import annotations

import contextlib
import copy
import http.client
import logging
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import shown, small_model
from torch import nn

from headstart import concurrency
from headstart.backbone.tracing import trace
from headstart.backbone.weights import random_backbone
from headstart.concurrency import ProcessLock, SharedScope, ignored_warnings, map_images, usable_cpus
from headstart.data.decode import decode, jpeg_bytes
from headstart.engine.onnx_engine import OnnxEngine
from headstart.model import Model, load
from headstart.prediction import Prediction
from headstart.quiet import quiet

THREADS = 8


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Results, or errors, of threads that start simultaneously."""
    barrier, out = threading.Barrier(count), [None] * count

    def one(i: int) -> None:
        barrier.wait()
        try:
            out[i] = work(i)
        except BaseException as error:
            out[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cut", "pool", "count"),
    [
        ("", "auto", 3),
        ("", "avgmax", 3),
        ("layer2", "flatten", 3),
        pytest.param("", "auto", 33, marks=pytest.mark.exhaustive),
    ],
)
def test_threads_that_share_a_model_before_its_first_prediction_agree_with_one(cut: str, pool: str, count: int) -> None:
    backbone = random_backbone("test_resnet", image_size=64)
    images = [shown(i) for i in range(count)]
    expected = small_model(backbone, cut=cut, pool=pool).predict(images)
    model = small_model(copy.deepcopy(backbone), cut=cut, pool=pool)
    call = nn.Module.__call__
    for answer in at_once(lambda _: model.predict(images)):
        assert answer == expected
    assert nn.Module.__call__ is call
    assert len(model._predictor._engines) == 1


def test_models_are_loaded_and_built_in_many_threads(tmp_path: Path) -> None:
    file = small_model(pool="avgmax").save(tmp_path / "m.safetensors")
    images = [shown(i) for i in range(2)]
    expected = load(file).predict(images)
    for answer in at_once(lambda _: load(file).predict(images), 4):
        assert answer == expected


def test_other_networks_run_while_one_is_traced() -> None:
    """torch.fx patches ``nn.Module.__call__`` and ``__getattr__`` for all threads."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.zeros(1, 3, 8, 8)
    expected = network(x)
    traced = random_backbone("test_resnet", image_size=64).module

    def work(i: int) -> bool:
        if i == 0:
            for _ in range(10):
                trace(traced)
            return True
        return all(torch.equal(network(x), expected) and network[0].weight.ndim == 4 for _ in range(500))

    assert at_once(work, 3) == [True] * 3


def predicted_in_child(model: Model, images: list[Any], out: Any) -> None:
    out.send(model.predict(images))
    out.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_forked_child_gives_the_same_predictions(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of OpenMP, ONNX Runtime and thread pools do not survive a fork."""
    if engine == "onnxruntime":
        monkeypatch.setattr("headstart.engine.select.choose_engine", lambda net, **_: OnnxEngine(net))
    model, count = small_model("test_resnet", image_size=64), 3
    images = [shown(i) for i in range(count)]
    with torch_threads(2):
        expected: list[Prediction] = model.predict(images)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        with ignored_warnings(category=DeprecationWarning):
            child = context.Process(target=predicted_in_child, args=(model, images, sender))
            child.start()
        try:
            assert receiver.poll(60), "the child hangs"
            answers = receiver.recv()
            child.join(20)
            assert child.exitcode == 0
        finally:
            child.kill()
        assert model.predict(images) == expected
        assert torch.get_num_threads() == 2
    assert [answer.label for answer in answers] == [own.label for own in expected]
    assert np.allclose([a.probability for a in answers], [e.probability for e in expected], atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_lock_that_another_thread_held_at_the_fork_is_free_in_the_child() -> None:
    lock, held, done = ProcessLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with ignored_warnings(category=DeprecationWarning):
        child = os.fork()
    if not child:
        with lock:
            os._exit(7)
    for _ in range(200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for a lock that nobody holds")
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7


APP = """
import sys
sys.path.insert(0, {tests!r})
import headstart
from small_models import shown

model = headstart.load({file!r})
images = [shown(i) for i in range(33)]
expected = model.predict(images)  # before the fork

def application(environ, start_response):
    import numpy as np
    answers = model.predict(images)
    same = np.allclose([a.probability for a in answers], [e.probability for e in expected], atol=1e-5)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
    return [str(bool(same)).encode()]
"""


@pytest.mark.exhaustive
def test_gunicorn_workers_answer_from_a_model_that_was_used_before_the_fork(tmp_path: Path) -> None:
    """``gunicorn --preload`` with two workers."""
    pytest.importorskip("gunicorn")
    file = small_model("test_resnet", image_size=160).save(tmp_path / "m.safetensors")
    (tmp_path / "app.py").write_text(APP.format(tests=str(Path(__file__).parent / "support"), file=str(file)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-b", f"127.0.0.1:{port}", "app:application"]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        answers = [_get(port) for _ in range(6)]
        assert answers == ["True"] * 6
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()


def _get(port: int) -> str:
    for _ in range(300):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.suppress(ConnectionRefusedError):
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        time.sleep(0.2)
    return "not reached"


def test_onnx_runtime_is_imported_without_its_telemetry() -> None:
    """The telemetry thread makes forked children hang at exit, and Headstart sends no telemetry."""
    for file in Path(concurrency.__file__).parent.rglob("*.py"):
        text = file.read_text()
        found = re.search(r"^(import|from) onnxruntime", text, re.MULTILINE)
        if found and file.name not in ("onnx_runtime.py", "space.py"):  # a Space is a program of its owner
            assert "onnx_runtime" in text[: found.start()], file
    code = (
        "import os, sys; from headstart.engine.onnx_runtime import onnxruntime; child = os.fork();\n"
        "if not child: sys.exit(7)\n"
        "assert 'ORT_DISABLE_TELEMETRY' not in os.environ\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=30, check=False).returncode == 7


def test_the_last_of_overlapping_threads_exits_a_shared_scope() -> None:
    state, seen = ["before"], []

    @contextlib.contextmanager
    def change() -> Iterator[None]:
        held, state[0] = state[0], "inside"
        yield
        state[0] = held

    scope = SharedScope(change)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(scope)
    second.enter_context(scope)
    first.close()
    seen.append(state[0])
    second.close()
    assert [*seen, state[0]] == ["inside", "before"]


def test_overlapping_threads_leave_warning_filters_unchanged() -> None:
    before = list(warnings.filters)
    first, second, third = contextlib.ExitStack(), contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(ignored_warnings())
    second.enter_context(warnings.catch_warnings())
    third.enter_context(ignored_warnings("PIL"))
    first.close()
    second.close()
    third.close()
    assert list(warnings.filters) == before


def test_only_warnings_of_the_given_module_are_ignored() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with ignored_warnings("other"):
            warnings.warn_explicit("a", UserWarning, "file", 1, module="other.part")
            warnings.warn_explicit("b", UserWarning, "file", 2, module="mine")
        warnings.warn_explicit("c", UserWarning, "file", 3, module="other.part")
    assert [str(own.message) for own in seen] == ["b", "c"]


def test_quiet_in_many_threads_restores_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("headstart-test-quiet")
    logger.setLevel(logging.INFO)
    before = sys.stdout, list(warnings.filters)

    def work(i: int) -> None:
        for _ in range(50):
            with quiet("headstart-test-quiet"):
                print("never")
                assert not logger.isEnabledFor(logging.WARNING)
                time.sleep(0.0005 * (i % 3))

    assert at_once(work) == [None] * THREADS
    assert (sys.stdout, list(warnings.filters)) == before
    assert logger.level == logging.INFO
    with quiet():
        thread = threading.Thread(target=print, args=("another thread",))
        thread.start()
        thread.join()
    assert capsys.readouterr().out == "another thread\n"


def test_a_generator_that_is_not_finished_leaves_no_warning_filter_behind() -> None:
    before = list(warnings.filters)
    images = map_images(lambda i: i, range(200), threads=2)
    assert next(images) == 0
    assert list(warnings.filters) == before
    del images
    assert list(warnings.filters) == before


def test_warnings_of_pillow_are_silenced_during_decoding() -> None:
    data = jpeg_bytes(shown(0), quality=90)

    def remark(*_: object) -> None:
        warnings.warn_explicit("odd metadata", UserWarning, "PIL/x.py", 1, module="PIL.TiffImagePlugin")

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr("headstart.data.jpeg.exceeds_limits", remark)
        assert decode(data).format == "JPEG"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_usable_cpus_respects_the_quota_of_a_container(
    files: dict[str, str], quota: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(concurrency, "CGROUPS", tmp_path)
    monkeypatch.setattr("os.process_cpu_count", lambda: 64, raising=False)
    assert usable_cpus() == (quota or 64)


def test_images_are_mapped_on_one_thread_per_usable_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("headstart.concurrency.usable_cpus", lambda: 2)
    barrier = threading.Barrier(3)

    def work(_: int) -> str:
        try:
            barrier.wait(0.05)
        except threading.BrokenBarrierError:
            return threading.current_thread().name
        return "three at a time"

    assert len(set(map_images(work, range(20)))) <= 2


def test_no_module_changes_warning_filters_in_a_way_that_threads_could_leak() -> None:
    modules = [
        path for path in Path(concurrency.__file__).parent.rglob("*.py") if "catch_warnings(" in path.read_text()
    ]
    assert not modules
