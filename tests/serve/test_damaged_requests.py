"""Damaged requests get error responses in the documented format, never an internal error."""

from __future__ import annotations

import asyncio
import io
import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from damaged import Damaged as Request
from damaged import ask, ask_all, damaged, fault_of
from PIL import Image
from served import jpeg, served, tiny_model

import headstart.serve.batching as services
from headstart.serve.access import AccessPolicy
from headstart.serve.app import build_app
from headstart.serve.batching import InferenceService
from headstart.serve.corrections import Corrections
from headstart.serve.limits import ServerLimits

LIMITS = ServerLimits(
    max_body_bytes=200_000, max_images=10, max_pixels=1_000_000, body_timeout=1.0, max_queued_tasks=64
)


def images() -> list[bytes]:
    held = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(held, "PNG")
    return [jpeg(1), jpeg(2)[:200], b"", b"text", held.getvalue()]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(services, "EXPECTED_IMAGES", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"event": "plan", "text": "a"}\n')
    service = InferenceService(tiny_model(), run=tmp_path / "run", limits=LIMITS)
    kept = Corrections(tmp_path / "kept")
    log: list[dict[str, Any]] = []
    application = build_app(service, admission=AccessPolicy("s3cret", True), corrections=kept, log=log.append)
    application.state.log = log
    yield application
    service.close()


@pytest.mark.slow
def test_damaged_requests_get_error_responses(app: Any) -> None:
    """300 seeded requests; ``benchmarks/damaged_requests.py`` sends 2,000."""
    chance, seen, wrong = random.Random(0), Counter[int](), []

    def look(request: Request, status: int, headers: dict[str, str], body: bytes) -> None:
        seen[status] += 1
        if fault := fault_of(request, status, headers, body):
            wrong.append((fault, request))

    keys = [chance.choice(["s3cret", "s3cret", "s3cret", ""]) for _ in range(300)]
    asyncio.run(ask_all(app, [damaged(chance, images(), key) for key in keys], look))
    assert not wrong, wrong[:3]
    assert not [entry for entry in app.state.log if "error" in entry]
    assert {200, 400, 401, 404, 405, 422} <= set(seen)


@pytest.mark.slow
def test_damaged_requests_over_a_connection_get_error_responses() -> None:
    chance, made = random.Random(1), images()
    with served(tiny_model(), limits=LIMITS) as server:

        def say(request: Request) -> tuple[Request, bytes]:
            got = b""
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plug:
                plug.sendall(request.raw())
                while piece := plug.recv(65536):
                    got += piece
            return request, got

        with ThreadPoolExecutor(16) as clients:
            replies = list(clients.map(say, [damaged(chance, made) for _ in range(100)]))
        wrong = [(got[:80], request) for request, got in replies if not got.startswith(b"HTTP/1.1 ")]
        wrong += [(got[:80], request) for request, got in replies if got[9:10] == b"5" and got[9:12] != b"503"]
        assert not wrong, wrong[:3]
        assert not [entry for entry in server.log if "error" in entry]
        assert server.client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[127.0.0.1]", "http://[::1", "null", "", "\xff", "http://a@b@c"]
)
def test_an_origin_that_is_no_address_is_refused(app: Any, origin: str) -> None:
    headers = [(b"host", b"localhost"), (b"origin", origin.encode("latin-1")), (b"authorization", b"Bearer s3cret")]
    status, _, body = asyncio.run(ask(app, Request("POST", "/v1/predict", b"", headers, b"")))
    assert (status, b"another site" in body) == (403, True)


@pytest.mark.parametrize("wanted", ["bytes=abc", "bytes=9-1", "bytes=99999999-", "bytes=0-1,5-", "x"])
def test_a_range_is_ignored(app: Any, wanted: str) -> None:
    folder = app.state.service.run
    (folder / "report.html").write_text("<h1>report</h1>")
    headers = [(b"host", b"localhost"), (b"range", wanted.encode()), (b"authorization", b"Bearer s3cret")]
    status, _, body = asyncio.run(ask(app, Request("GET", "/watch/report", b"", headers, b"")))
    assert (status, body) == (200, b"<h1>report</h1>")
