"""The request middleware in ASGI messages: access, bodies, metrics and log."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from headstart.serve import middleware as guards
from headstart.serve.access import AccessPolicy
from headstart.serve.errors import HttpError
from headstart.serve.limits import ServerLimits
from headstart.serve.middleware import (
    ClientDisconnected,
    RequestMiddleware,
    ServerState,
    cancel_on_disconnect,
    route_path,
)
from headstart.serve.prometheus import Metrics
from headstart.serve.request_log import write_json_line

LIMITS = ServerLimits(max_body_bytes=10, max_buffered_bytes=15, body_timeout=0.2)


@dataclass
class Conversation:
    """The middleware around an application, with the sent messages and log entries."""

    limits: ServerLimits = LIMITS
    admission: AccessPolicy = field(default_factory=lambda: AccessPolicy(local=False))
    state: ServerState = field(default_factory=ServerState)
    metrics: Metrics = field(default_factory=Metrics)
    log: list[dict[str, Any]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    during: list[tuple[int, int]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    received: int = 0
    app: Callable[..., Any] | None = None

    def ask(
        self,
        method: str = "POST",
        path: str = "/v1/predict",
        pieces: Sequence[bytes | Exception | None] = (b"",),
        **headers: str,
    ) -> int:
        """The logged status; a piece None is a disconnect, a dict is sent as an ASGI message."""
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
        messages = [
            piece
            if isinstance(piece, dict)
            else {"type": "http.disconnect"}
            if piece is None
            else {"type": "http.request", "body": piece, "more_body": place < len(pieces) - 1}
            for place, piece in enumerate(pieces)
        ]
        if messages and messages[-1]["type"] == "http.request" and getattr(self, "open", False):
            messages[-1]["more_body"] = True

        async def receive() -> dict[str, Any]:
            if self.received < len(messages):
                self.received += 1
                self.held.append(self.state.buffered_bytes)
                return messages[self.received - 1]
            await asyncio.sleep(60)
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        guard = RequestMiddleware(
            self.app or self._echo,
            limits=self.limits,
            admission=self.admission,
            state=self.state,
            metrics=self.metrics,
            name_path=lambda own: f"route {own}",
            log=self.log.append,
        )
        self.received = 0
        self.sent.clear()
        asyncio.run(guard(scope, receive, send))
        return int(self.log[-1]["status"])

    async def _echo(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.methods.append(scope["method"])
        self.during.append((self.state.active_requests, self.state.buffered_bytes))
        scope["state"] |= {"images": 3, "unreadable": 1, "other": 4}
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"yes", "more_body": False})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(own["body"] for own in self.sent[1:])

    @property
    def reason(self) -> str:
        return str(json.loads(self.body)["error"]["reason"])


def test_a_body_is_passed_on_in_pieces_and_its_memory_is_freed() -> None:
    own = Conversation()
    assert own.ask(pieces=[b"abc", b"", b"defg"]) == 200
    assert (own.bodies, own.during) == ([b"abcdefg"], [(1, 7)])
    assert (own.state.active_requests, own.state.buffered_bytes) == (0, 0)
    assert own.headers == {b"a": b"b", b"x-content-type-options": b"nosniff"}
    assert own.body == b"yes"


def test_other_asgi_events_are_passed_on() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    own = Conversation()
    guard = RequestMiddleware(
        app, limits=LIMITS, admission=own.admission, state=own.state, metrics=own.metrics, log=None
    )
    asyncio.run(guard({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_a_body_may_have_exactly_the_maximum_size() -> None:
    own = Conversation()
    assert own.ask(pieces=[b"12345", b"67890"]) == 200
    assert own.ask(pieces=[b"12345", b"678901", b""]) == 413
    assert (own.status, own.reason) == (
        413,
        "The request body is larger than 10 bytes. Send fewer or smaller images per request.",
    )
    assert own.headers[b"connection"] == b"close"
    assert [message["type"] for message in own.sent] == ["http.response.start", *["http.response.body"] * 2]
    assert own.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert own.ask(pieces=[b"1", b"2"], content_length="10") == 200
    assert "connection" not in {name.decode() for name in own.headers}
    assert own.ask(pieces=[b"1"], content_length="11") == 413
    assert own.received == 1  # the rest of the body is discarded
    for odd in ("ten", "-1", "", "²"):
        assert own.ask(pieces=[b"1"], content_length=odd) == 200
    assert own.ask(pieces=[b"1"], content_length="9" * 5000) == 413
    assert own.state.buffered_bytes == 0


def test_the_bodies_of_all_requests_share_a_limit() -> None:
    own = Conversation(state=ServerState(buffered_bytes=9))
    assert own.ask(pieces=[b"123456"]) == 200
    assert own.ask(pieces=[b"1234567"]) == 503
    assert own.headers[b"retry-after"] == b"1"
    assert own.reason.startswith("Too many large requests at a time")
    assert own.state.buffered_bytes == 9


def test_a_late_body_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "LINGER_SECONDS", 0.01)
    own = Conversation()
    own.open = True  # type: ignore[attr-defined]
    assert own.ask(pieces=[b"123"]) == 408
    assert "within 0.2 s" in own.reason
    assert own.headers[b"connection"] == b"close"
    assert own.log[-1]["ms"] == pytest.approx(1000 * (0.2 + 0.01), abs=150)
    assert own.state.buffered_bytes == 0


def test_a_client_disconnect_is_logged() -> None:
    own = Conversation()
    assert own.ask(pieces=[b"12", None]) == guards.CLIENT_CLOSED_REQUEST == 499
    assert (own.sent, own.bodies, own.state.active_requests, own.state.buffered_bytes) == ([], [], 0, 0)


def test_a_message_without_more_body_is_the_last() -> None:
    own = Conversation()
    assert own.ask(pieces=[{"type": "http.request", "body": b"1"}]) == 200
    assert own.ask(pieces=[{"type": "http.request"}]) == 200
    assert own.bodies == [b"1", b""]
    assert own.ask(pieces=[b"x" * 11, {"type": "http.request", "body": b"1"}, b""]) == 413
    assert own.received == 2
    assert own.log[-1]["ms"] < 1000


def test_after_the_body_the_application_receives_the_disconnect() -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([(await receive())["type"] for _ in range(3)])

    own = Conversation(app=app)
    own.ask(pieces=[b"1", {"type": "http.request", "body": b"2"}, None])
    assert heard == ["http.request", "http.request", "http.disconnect"]


def test_the_rest_of_a_refused_request_is_discarded_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Conversation(limits=ServerLimits(max_body_bytes=10, max_buffered_bytes=1000, body_timeout=5))
    assert guards.MAX_DISCARDED_BODIES == 4
    many = [b"x" * 10] * 9
    own.ask(pieces=[b"x" * 11, *many])
    assert own.received == 1 + 5  # until more than four times the maximum body size was discarded
    own.held.clear()
    own.ask(pieces=[b"x" * 11, b"1", b"2"])
    assert own.received == 3
    assert own.log[-1]["ms"] < 1000
    assert own.held == [0, 0, 0]  # discarded bytes are not stored
    own.ask(pieces=[b"x" * 11, b"1", None, b"2"])
    assert own.received == 3
    monkeypatch.setattr(guards, "LINGER_SECONDS", 0.05)
    own.open = True  # type: ignore[attr-defined]
    own.ask(pieces=[b"x" * 11])
    assert own.log[-1]["ms"] < 1000  # nothing arrives, and the middleware does not wait
    assert own.sent[1]["more_body"] is True  # the error response was sent before
    assert own.status == 413


def test_the_rest_of_a_refused_request_is_discarded_for_at_most_body_timeout() -> None:
    """After a 408 the rest of the body is read for LINGER_SECONDS only."""
    for status, least, most in ((413, 0.35, 1.2), (408, 0.2 + 0.05, 0.3)):
        own = Conversation(
            limits=ServerLimits(max_body_bytes=10, max_buffered_bytes=1000, body_timeout=0.4 if status == 413 else 0.2)
        )
        own.open = True  # type: ignore[attr-defined]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guards, "LINGER_SECONDS", 5.0 if status == 413 else 0.06)
            assert own.ask(pieces=[b"x" * (11 if status == 413 else 1)]) == status
        assert 1000 * least < own.log[-1]["ms"], status
        assert own.log[-1]["ms"] < 1000 * most + 300, status


def test_linger_is_two_seconds() -> None:
    assert guards.LINGER_SECONDS == 2


def test_a_stopping_server_refuses_requests_and_closes_connections() -> None:
    own = Conversation(state=ServerState(draining=True))
    assert own.ask() == 503
    assert own.headers[b"retry-after"] == b"5"
    assert own.headers[b"connection"] == b"close"
    assert not own.bodies
    for path in ("/", "/watch", "/healthz", "/readyz"):
        assert own.ask("GET", path) == 200, path
        assert own.headers[b"connection"] == b"close"
    assert own.ask("GET", "/metrics") == 503


def test_a_head_request_is_a_get_without_its_body() -> None:
    own = Conversation()
    assert own.ask("HEAD") == 200
    assert own.methods == ["GET"]
    assert [(m["type"], m.get("body"), m.get("more_body")) for m in own.sent] == [
        ("http.response.start", None, None),
        ("http.response.body", b"", False),
    ]
    assert own.log[-1]["method"] == "HEAD"
    ended: list[str] = []

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        try:
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
            ended.append("it went on")
        finally:
            ended.append("after the first piece")

    own.app = stream
    assert own.ask("HEAD") == 200
    assert (len(own.sent), ended) == (2, ["after the first piece"])

    async def two(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"1"})
        await send({"type": "http.response.body", "body": b"2", "more_body": False})
        ended.append("both")

    own.app = two
    assert own.ask("HEAD") == 200
    assert (len(own.sent), ended[-1]) == (2, "both")
    own.app = None
    assert own.ask("GET") == 200
    assert own.body == b"yes"


def test_a_refused_head_request_has_its_status_and_no_body() -> None:
    own = Conversation(admission=AccessPolicy("k", local=False))
    assert own.ask("HEAD") == 401
    assert (own.status, own.body) == (401, b"")


def test_an_internal_error_is_logged_with_its_traceback_and_answered_without() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError("secret")

    own = Conversation(app=app)
    assert own.ask() == 500
    assert own.reason == "Internal error of the server. Its log has the details."
    fault, entry = own.log
    assert "ZeroDivisionError: secret" in fault["error"]
    assert datetime.fromisoformat(fault["time"]).tzinfo is not None
    assert entry["status"] == 500

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        raise ZeroDivisionError

    own = Conversation(app=late)
    assert own.ask() == 201
    assert len(own.sent) == 1
    assert "ZeroDivisionError" in own.log[0]["error"]


def test_each_request_is_counted_and_logged_once() -> None:
    own = Conversation()
    own.ask("POST", "/v1/predict" + "x" * 300)
    entry = own.log[-1]
    assert list(entry) == ["time", "method", "path", "status", "ms", "images", "unreadable"]
    assert entry["path"] == ("/v1/predict" + "x" * 300)[:200]
    assert (entry["method"], entry["images"]) == ("POST", 3)
    assert 0 <= entry["ms"] < 1000
    assert entry["ms"] == round(entry["ms"], 1)
    assert len(entry["time"]) == len("2026-11-26T15:43:06.704+00:00")
    assert entry["time"].endswith("+00:00")
    for method, shown in (
        ("PUT", "PUT"),
        ("PATCH", "PATCH"),
        ("DELETE", "DELETE"),
        ("OPTIONS", "OPTIONS"),
        ("BREW", "other"),
    ):
        own.ask(method, "/p")
        assert own.log[-1]["method"] == shown
    one = {"method": "PUT", "path": "route /p", "status": "200"}
    assert own.metrics.registry.get_sample_value("headstart_requests_total", one) == 1
    assert own.metrics.registry.get_sample_value("headstart_request_seconds_count", {"path": "route /p"}) == 5
    assert own.metrics.registry.get_sample_value("headstart_request_seconds_sum", {"path": "route /p"}) < 1


def test_without_path_names_metrics_use_other_and_without_a_log_nothing_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    own = Conversation()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        own.sent.append(message)

    guard = RequestMiddleware(
        app, limits=LIMITS, admission=own.admission, state=own.state, metrics=own.metrics, log=None
    )
    asyncio.run(guard({"type": "http", "method": "GET", "path": "/x", "headers": []}, receive, send))
    assert own.status == 500
    assert capsys.readouterr().err == ""
    counted = {"method": "GET", "path": "other", "status": "500"}
    assert own.metrics.registry.get_sample_value("headstart_requests_total", counted) == 1


def admitted(admission: AccessPolicy, method: str = "GET", path: str = "/v1/model", **headers: str) -> int:
    try:
        admission.check(method, path, Headers(dict(headers.items())))
    except HttpError as refusal:
        return refusal.status
    return 200


def test_a_key_is_required_except_for_health_checks_and_static_files() -> None:
    own = AccessPolicy("geheim", local=True)
    assert "geheim" not in repr(own)
    assert admitted(own) == 401
    for given in ("Bearer geheim", "bearer geheim", "BEARER  geheim "):
        assert admitted(own, authorization=given) == 200, given
    for given in ("Bearer geheim2", "Bearer", "Basic geheim", "geheim", "Bearer gehei", "Bearer \u00e9", ""):
        assert admitted(own, authorization=given) == 401, given
    for path in ("/", "/watch", "/healthz", "/readyz", "/page/page.js"):
        assert admitted(own, path=path) == 200, path
    for path in ("/page", "/watch/events", "/metrics", "/openapi.json", "/pages/"):
        assert admitted(own, path=path) == 401, path
    assert admitted(own, host="example.com", authorization="Bearer geheim") == 200
    assert admitted(AccessPolicy("XX"), authorization="") == 401
    assert admitted(AccessPolicy("XX")) == 401


def test_counters_start_at_zero() -> None:
    assert ServerState() == ServerState(False, 0, 0, 0, 0)


def test_without_a_key_a_local_server_requires_a_loopback_host() -> None:
    own = AccessPolicy()
    assert (own.key, own.local) == ("", True)
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000", "LOCALHOST"):
        assert admitted(own, host=host) == 200, host
    for host in ("", "example.com", "localhost.example.com", "127.0.0.2", "[", "http://[", "a:b:c"):
        assert admitted(own, host=host) == 403, host
    assert admitted(own) == 403
    assert admitted(AccessPolicy(local=False), host="example.com") == 200


def test_requests_from_other_sites_are_refused() -> None:
    own = AccessPolicy(local=False)
    for method in ("POST", "PUT", "PATCH", "DELETE", "BREW"):
        assert admitted(own, method, host="a.b:1", origin="http://A.B:1") == 200
        assert admitted(own, method, host="A.b:1") == 200
        for origin in ("http://a.b", "http://a.b:2", "http://evil", "null", "http://[", "", "http://[127.0.0.1]"):
            assert admitted(own, method, host="a.b:1", origin=origin) == 403, origin
    for method in ("GET", "HEAD", "OPTIONS"):
        assert admitted(own, method, host="a.b:1", origin="http://evil") == 200


def test_the_path_of_a_route_excludes_the_mount_prefix() -> None:
    assert route_path({"path": "/a/b"}) == "/a/b"
    assert route_path({"path": "/m/b", "root_path": "/m"}) == "/b"
    assert route_path({"path": "/m", "root_path": "/m"}) == ""
    assert route_path({"path": "/more/b", "root_path": "/m"}) == "/more/b"


def test_work_is_cancelled_when_the_client_disconnects() -> None:
    ended: list[str] = []

    async def work(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            ended.append("given up")
            raise
        return "done"

    def request(leaves: bool) -> Request:
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            if not leaves:
                ended.append("asked on")
                await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        return Request({"type": "http"}, receive)

    async def both(leaves: bool, seconds: float) -> str:
        found = await cancel_on_disconnect(request(leaves), work(seconds))
        assert [own for own in asyncio.all_tasks() if own is not asyncio.current_task() and not own.cancelling()] == []
        return found

    assert asyncio.run(both(False, 0.01)) == "done"
    assert ended == ["asked on"]

    async def gone() -> None:
        with pytest.raises(ClientDisconnected):
            await cancel_on_disconnect(request(True), work(60))
        await asyncio.sleep(0)
        assert ended[-1] == "given up"

    asyncio.run(gone())

    async def fails() -> None:
        raise ZeroDivisionError

    async def failing() -> None:
        with pytest.raises(ZeroDivisionError):
            await cancel_on_disconnect(request(False), fails())

    asyncio.run(failing())


def test_a_log_line_is_ascii_json_and_a_closed_stderr_is_ignored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json_line({"path": "/\u00e9\n\x1b[31m", "n": 1})
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.isascii()) == ("", 1, True)
    assert json.loads(err) == {"path": "/\u00e9\n\x1b[31m", "n": 1}

    class Closed:
        flushed = 0

        def write(self, _: str) -> int:
            return 1

        def flush(self) -> None:
            Closed.flushed += 1
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    write_json_line({})
    assert Closed.flushed == 1
