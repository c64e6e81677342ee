from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from damaged import Damaged, ask
from served import form, jpeg, tiny_model, until

import headstart.serve.batching as services
from headstart.errors import OptionError
from headstart.progress import SilentProgress
from headstart.serve import create_app
from headstart.serve.server import address, is_loopback, listen, serve, serve_async


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model().save(tmp_path_factory.mktemp("model") / "tiny.safetensors")


SLOW = """
import sys, time
import headstart.serve.batching as services
from headstart.cli import main as cli

services.EXPECTED_IMAGES = 1  # nothing is measured or exported
judge = services.Model.predict_features

def slowly(model, features):
    time.sleep(services.SLOW)
    return judge(model, features)

services.SLOW = 0.0
services.Model.predict_features = slowly
decode = services.InferenceService._timed_pixels

def mark(service, data, max_decoded_pixels):
    services.SLOW = 1.5
    return decode(service, data, max_decoded_pixels)

services.InferenceService._timed_pixels = mark
cli.run()
"""


@contextmanager
def started(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The ready server in a separate process; each batch takes 1.5 s."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "serve", *map(str, arguments), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or []))
    try:
        reader.start()
        until(lambda: process.poll() is not None or any("is ready at" in line for line in lines), 180)
        found = re.search(r"is ready at (http://\S+)\.", "".join(lines))
        assert found, lines
        yield process, found[1], lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


@pytest.mark.exhaustive
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_finishes_active_requests_and_exits_with_status_0(
    model_file: Path, asked: signal.Signals
) -> None:
    with (
        started(model_file) as (process, url, lines),
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        replies: list[httpx.Response] = []
        sent = form(*((f"{i}.jpg", jpeg(i)) for i in range(3)))
        under_way = [
            threading.Thread(
                target=lambda: replies.append(httpx.post(f"{url}/v1/predict", files=sent, timeout=30, trust_env=False))
            )
            for _ in range(4)
        ]
        assert client.get("/readyz").status_code == 200
        for own in under_way:
            own.start()
        until(lambda: "headstart_queue 12.0" in client.get("/metrics").text)
        process.send_signal(asked)
        until(lambda: client.get("/readyz").status_code == 503)
        assert client.post("/v1/predict", files=form(("a.jpg", jpeg()))).status_code == 503
        for own in under_way:
            own.join()
        assert process.wait(20) == 0
    assert [reply.status_code for reply in replies] == [200] * 4
    for reply in replies:
        assert [own["error"] for own in reply.json()["predictions"]] == [None] * 3
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(own["status"], own["images"]) for own in entries if own.get("images")] == [(200, 3)] * 4
    assert not [line for line in lines if "Traceback" in line]


@contextmanager
def served_in_a_thread(model_file: Path) -> Iterator[tuple[int, threading.Event, threading.Thread]]:
    """The port of a ready server in a thread of this process, the event that stops it, and the thread."""
    stop, seen, failed = threading.Event(), list[str](), list[BaseException]()

    def run() -> None:
        try:
            serve(model_file, port=0, stop=stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "EXPECTED_IMAGES", 1)
        patch.setattr(SilentProgress, "say", lambda _self, text: seen.append(text))
        thread.start()
        try:
            until(lambda: any("is ready" in line for line in seen) or failed)
            assert not failed
            yield int(re.findall(r"127\.0\.0\.1:(\d+)", "".join(seen))[0]), stop, thread
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()


def predict_request() -> bytes:
    """An HTTP request with one image."""
    body = b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + jpeg() + b"\r\n--b--\r\n"
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer(client: socket.socket) -> bytes:
    """Everything that the server sends until it closes the connection; an error if it resets the connection."""
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def kept_alive(port: int) -> socket.socket:
    """A connection with one answered request."""
    client, received = connected(port), b""
    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while not received.endswith(b"}"):
        received += client.recv(65536)
    assert received.startswith(b"HTTP/1.1 200")
    return client


@pytest.mark.slow
def test_in_a_thread_it_handles_no_signals_and_answers_pending_requests(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is reset, neither active ones nor those that the server has not read yet."""
    before = [signal.getsignal(own) for own in (signal.SIGINT, signal.SIGTERM)]
    level = logging.getLogger("uvicorn").level
    predict = services.Model.predict_features
    with served_in_a_thread(model_file) as (port, stop, _), ExitStack() as stack:
        monkeypatch.setattr(
            services.Model, "predict_features", lambda model, features: (time.sleep(0.3), predict(model, features))[1]
        )
        request = predict_request()
        clients = [stack.enter_context(connected(port)) for _ in range(11)]
        idle = stack.enter_context(kept_alive(port))
        clients[10].sendall(request[:-20])
        for client in clients[:10]:
            client.sendall(request)
        stop.set()
        time.sleep(0.1)
        clients[10].sendall(request[-20:])
        for client in clients:
            received = answer(client)
            assert received.startswith(b"HTTP/1.1 200"), received[:200]
            assert b"connection: close" in received.lower()
        assert answer(idle) == b""
    assert [signal.getsignal(own) for own in (signal.SIGINT, signal.SIGTERM)] == before
    assert logging.getLogger("uvicorn").level == level


@pytest.mark.slow
def test_a_client_that_has_just_connected_or_read_a_response_is_refused_not_reset(model_file: Path) -> None:
    """Such a client is about to send a request, so its connection stays open for a moment after the stop."""
    with served_in_a_thread(model_file) as (port, stop, thread), connected(port) as new, kept_alive(port) as used:
        stop.set()
        time.sleep(0.6)  # all requests are answered and the listener is closed
        with pytest.raises(ConnectionRefusedError):
            connected(port)
        assert thread.is_alive()
        for client in (new, used):
            client.sendall(predict_request())
            assert answer(client).startswith(b"HTTP/1.1 503")


def test_in_a_running_loop_serve_names_serve_async_which_ends_when_cancelled(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "EXPECTED_IMAGES", 1)
    seen: list[str] = []
    monkeypatch.setattr(SilentProgress, "say", lambda _self, text: seen.append(text))

    async def whole() -> None:
        with pytest.raises(OptionError, match=r"await serve_async\(.*create_app"):
            serve(model_file, port=0)
        before = signal.getsignal(signal.SIGTERM)
        serving = asyncio.create_task(serve_async(model_file, port=0))
        while not any("is ready" in own for own in seen):
            await asyncio.sleep(0.01)
            assert not serving.done()
        assert signal.getsignal(signal.SIGTERM) == before
        url = re.findall(r"http://127\.0\.0\.1:\d+", "".join(seen))[0]
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
            assert (await client.post("/v1/predict", files=form(("a.jpg", jpeg())))).status_code == 200
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(OSError):  # noqa: PT011
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5)

    asyncio.run(whole())


def test_the_application_takes_its_model_and_key_from_the_environment(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADSTART_MODEL", raising=False)
    with pytest.raises(OptionError, match="HEADSTART_MODEL"):
        create_app()
    monkeypatch.setenv("HEADSTART_MODEL", str(model_file))
    monkeypatch.setenv("HEADSTART_KEY", "two words")
    with pytest.raises(OptionError, match="key"):
        create_app()
    monkeypatch.setenv("HEADSTART_KEY", "k")
    app = create_app(log=None)
    headers = [(b"host", b"any.example")]
    assert asyncio.run(ask(app, Damaged("GET", "/v1/model", b"", headers, b"")))[0] == 401
    headers.append((b"authorization", b"Bearer k"))
    assert asyncio.run(ask(app, Damaged("GET", "/v1/model", b"", headers, b"")))[0] == 200


@pytest.mark.exhaustive
def test_under_another_server_with_workers_it_answers(model_file: Path) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "headstart.serve:create_app", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=os.environ | {"HEADSTART_MODEL": str(model_file)},
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:

            def answers() -> bool:
                with suppress(httpx.ConnectError):
                    return client.post("/v1/predict", files=form(("a.jpg", jpeg()))).status_code == 200
                return False

            until(answers, 120)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.exhaustive
def test_a_stop_signal_under_load_resets_no_connection(model_file: Path) -> None:
    """Each request is answered, refused with 503, or never accepted."""
    with started(model_file) as (process, url, lines):
        seen: list[object] = []

        def ask_again_and_again(client: httpx.Client) -> None:
            try:
                while True:
                    seen.append(client.post("/v1/predict", files=form(("a.jpg", jpeg()))).status_code)
            except httpx.ConnectError:  # the server no longer listens
                pass
            except httpx.TransportError as error:
                seen.append(repr(error))

        with ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False)) for _ in range(12)]
            threads = [threading.Thread(target=ask_again_and_again, args=(client,)) for client in clients]
            for thread in threads:
                thread.start()
            until(lambda: seen.count(200) > 5, 60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            for thread in threads:
                thread.join()
    assert set(seen) <= {200, 503}, set(seen)
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.exhaustive
def test_a_second_signal_ends_it_at_once(model_file: Path) -> None:
    with started(model_file) as (process, url, _):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as plug:
            plug.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            time.sleep(0.3)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert time.monotonic() - began < 15


def test_without_the_extra_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    script = """
import sys

for name in ("fastapi", "prometheus_client", "starlette", "uvicorn"):
    sys.modules[name] = None  # as if it were not installed
from headstart.cli import main as cli

cli.run()
"""
    command = [sys.executable, "-c", script, "serve", str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Run: pip install "headstart[serve]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_is_invalid_in_a_header_is_refused(model_file: Path) -> None:
    for key in ("two words", "é", "new\nline"):
        with pytest.raises(OptionError, match="key"):
            serve(model_file, key=key)


def test_loopback_addresses_are_recognised() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.0.1.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.com")))
    with listen("127.0.0.1", 0) as own:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address(own))
