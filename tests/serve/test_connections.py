from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import httpx
import pytest
from served import Served, jpeg, served, tiny_model, until

from headstart.serve import connections
from headstart.serve.connections import SLICE_BYTES, BoundedConnection, ConnectionRegistry
from headstart.serve.limits import ServerLimits
from headstart.serve.middleware import ServerState


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = ServerLimits(
        max_body_bytes=1_000_000,
        header_timeout=0.5,
        body_timeout=0.5,
        keep_alive_timeout=1.5,
        response_timeout=1.5,
        max_connections=6,
    )
    with served(tiny_model(), limits=limits) as own:
        yield own


def answer(plug: socket.socket) -> bytes:
    """Everything received until the server closes the connection."""
    plug.settimeout(20)
    got = b""
    try:
        while piece := plug.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


def drip(plug: socket.socket, drop: bytes, *, seconds: float) -> None:
    """Sends repeatedly until the server closes the connection."""
    plug.settimeout(0.05)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        plug.sendall(drop)
        with suppress(TimeoutError):
            if not plug.recv(10):
                raise ConnectionResetError


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"POST /v1/predict HTTP/1.1\r\nX: " + b"y" * 99],
)
def test_an_idle_connection_is_closed(server: Served, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as plug:
        plug.sendall(sent)
        began = time.monotonic()
        assert answer(plug) == b""
        assert time.monotonic() - began < 10


def test_slow_headers_time_out(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as plug:
        plug.sendall(b"GET /healthz HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            drip(plug, b"X", seconds=10)


@pytest.mark.slow
def test_a_kept_alive_connection_may_idle_but_not_send_partial_headers(server: Served) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as plug:
        plug.settimeout(20)
        for rest in (0, 0.8):  # longer than header_timeout
            time.sleep(rest)
            plug.sendall(ask)
            got = b""
            while not got.endswith(b'{"alive":true}'):
                got += plug.recv(65536)
            assert got.startswith(b"HTTP/1.1 200")
        plug.sendall(ask[:9])
        began = time.monotonic()
        assert answer(plug) == b""
        assert time.monotonic() - began < 1.4


def test_connections_over_the_limit_are_refused_until_one_closes(server: Served) -> None:
    server.client.close()
    until(lambda: not server.service.state.open_connections)
    plugs = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    until(lambda: server.service.state.open_connections == 6)
    with socket.create_connection(("127.0.0.1", server.port)) as plug:
        head, _, body = answer(plug).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: 1" in head
    assert json.loads(body)["error"]["code"] == "unavailable"
    for plug in plugs:
        plug.close()
    until(lambda: not server.service.state.open_connections)
    with socket.create_connection(("127.0.0.1", server.port)) as plug:
        plug.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer(plug).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9\r\n\r\n", b"GET /" + b"x" * 99_999])
def test_invalid_http_gets_an_error_response_of_the_same_format(server: Served, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as plug:
        plug.sendall(sent + b"\r\n\r\n")
        head, _, body = answer(plug).partition(b"\r\n\r\n")
    if head:  # endless headers may end with a reset
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["status"] == 400


def keep_sending(plug: socket.socket, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        plug.sendall(b"x")
        time.sleep(0.02)


POST = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
REFUSED = {
    413: POST + b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000),
    403: b"POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000),
    400: b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 900_000 + b"\r\n\r\n",
    503: POST + b"Content-Length: 900000\r\n\r\n" + bytes(900_000),
}


@pytest.mark.parametrize("status", REFUSED)
def test_a_client_that_sends_everything_first_receives_the_error_response(server: Served, status: int) -> None:
    others = 6 * (status == 503)
    with ExitStack() as stack:
        for _ in range(others):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        until(lambda: server.service.state.open_connections == others)
        with socket.create_connection(("127.0.0.1", server.port)) as plug:
            for start in range(0, len(REFUSED[status]), 100_000):
                plug.sendall(REFUSED[status][start : start + 100_000])  # fails if the server has already closed
                time.sleep(0.002)
            assert plug.recv(12) == f"HTTP/1.1 {status}".encode()
    until(lambda: not server.service.state.open_connections and not server.service.state.lingering_connections)


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/9\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", REFUSED[413][:200]]
)
def test_a_refused_client_that_keeps_sending_is_disconnected(server: Served, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as plug:
        plug.sendall(start)
        with pytest.raises(ConnectionError):
            keep_sending(plug, seconds=5)
    until(lambda: not server.service.state.open_connections and not server.service.state.lingering_connections)


def test_lingering_connections_are_limited() -> None:
    with (
        served(tiny_model(), limits=ServerLimits(max_connections=2, header_timeout=0.5)) as server,
        ExitStack() as stack,
    ):
        plugs = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(8)]
        until(lambda: server.service.state.lingering_connections == 2)
        assert all(answer(plug).startswith(b"HTTP/1.1 503") for plug in plugs[2:])
        assert server.service.state.lingering_connections == 2
        for plug in plugs:
            plug.close()
        until(lambda: not server.service.state.lingering_connections)


@pytest.mark.exhaustive
def test_a_client_that_does_not_read_is_disconnected(server: Served) -> None:
    until(lambda: not server.service.state.open_connections)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    plug = socket.socket()
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plug.connect(("127.0.0.1", server.port))
    with plug:
        plug.settimeout(3)
        with suppress(ConnectionError, TimeoutError):  # the socket buffers are full, or the connection is closed before
            plug.sendall(ask * 20_000)
        until(lambda: any(own["path"] == "/openapi.json" for own in server.log))
        until(lambda: not server.service.state.open_connections)


class RecordingHttp(asyncio.Protocol):
    """A fake HTTP protocol that records the size and time of received bytes."""

    def __init__(self, order: list[tuple[str, int]], name: str) -> None:
        self.order, self.name = order, name

    def data_received(self, data: bytes) -> None:
        self.order.append((self.name, len(data)))


class StubTransport(asyncio.Transport):
    def __init__(self, port: int) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", port)})
        self.reads = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return False


def test_bytes_are_parsed_in_slices_and_a_new_connection_does_not_wait_for_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "PARSE_SECONDS", 1e-9)  # one slice per iteration of the event loop
    order: list[tuple[str, int]] = []

    async def both() -> None:
        registry = ConnectionRegistry(ServerLimits(), ServerState())
        made = []
        for port, name in enumerate(["large", "small"]):
            connection, transport = (
                BoundedConnection(registry, partial(RecordingHttp, order, name)),
                StubTransport(port),
            )
            connection.connection_made(transport)
            made.append((connection, transport))
        (large, large_transport), (small, small_transport) = made
        large.data_received(bytes(5 * SLICE_BYTES + 1))
        assert order == [("large", SLICE_BYTES)]
        assert not large_transport.reads  # until the bytes of the connection are parsed
        small.data_received(b"GET")
        for _ in range(10):
            await asyncio.sleep(0)
        assert large_transport.reads
        assert small_transport.reads
        for connection, _ in made:
            connection.connection_lost(None)

    asyncio.run(both())
    assert order.index(("small", 3)) <= 2
    assert sum(size for name, size in order if name == "large") == 5 * SLICE_BYTES + 1
    assert order[-1] == ("large", 1)


def chunks_of_one_byte(port: int, stop: threading.Event) -> None:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as plug:
        plug.sendall(POST + b"Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not stop.is_set():
            plug.sendall(b"1\r\nx\r\n" * 10_000)


@pytest.mark.exhaustive
def test_bodies_in_tiny_chunks_do_not_delay_others_for_long() -> None:
    """Regression: without slices, two such clients delayed a health check by more than 10 seconds."""
    with served(tiny_model(), limits=ServerLimits(body_timeout=60)) as server:
        stop = threading.Event()
        attackers = [threading.Thread(target=chunks_of_one_byte, args=(server.port, stop)) for _ in range(2)]
        for attacker in attackers:
            attacker.start()
        time.sleep(0.5)
        took = []
        for _ in range(5):
            began = time.monotonic()
            assert server.client.get("/healthz").status_code == 200
            took.append(time.monotonic() - began)
        stop.set()
        for attacker in attackers:
            attacker.join()
    assert sorted(took)[2] < 3, took


@pytest.mark.exhaustive
def test_hundreds_of_connections_that_send_their_headers_slowly_are_cut_off() -> None:
    limits = ServerLimits(max_connections=32, header_timeout=1.0, body_timeout=2.0)
    with served(tiny_model(), limits=limits) as server, ExitStack() as stack:
        plugs = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(300)]
        end, answered = time.monotonic() + 20, 0
        while time.monotonic() < end and answered < 5:
            for plug in plugs:
                with suppress(OSError):
                    plug.send(b"X")
            time.sleep(0.1)
            with suppress(httpx.TransportError):
                answered += httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
        assert answered == 5
        assert server.service.state.lingering_connections <= 32
        until(lambda: not server.service.state.lingering_connections)


def test_the_server_still_works_after_all_attacks(server: Served) -> None:
    reply = httpx.post(f"{server.url}/v1/predict", files={"files": ("a.jpg", jpeg())}, trust_env=False)
    assert reply.status_code == 200
