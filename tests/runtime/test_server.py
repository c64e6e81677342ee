"""The server of exported files: the API, errors and limits of ``headstart serve``, on the standard library."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from encoded_images import encoded
from exported_models import model_and_export
from PIL import Image
from random_images import random_image
from served import form, served, until
from small_onnx import CLASSES, small_onnx

import headstart as hs
from headstart.errors import OptionError, ServerError
from headstart.progress import SilentProgress
from headstart.runtime import load
from headstart.runtime.onnx_model import OnnxModel
from headstart.runtime.server import LIMITS, PredictionServer, serve
from headstart.serve import serve as serve_model
from headstart.serve.access import AccessPolicy
from headstart.serve.limits import ServerLimits
from headstart.serve.listener import address, listen
from headstart.serve.schemas import ImagePrediction, ModelInfo, PredictResponse

SMALL = ServerLimits(max_body_bytes=200_000, max_images=3, max_pixels=100_000, body_timeout=0.5, header_timeout=0.5)
RED = encoded(random_image(0, (250, 20, 20)), "PNG")


@dataclass
class Running:
    """A running server and its log."""

    server: PredictionServer
    client: httpx.Client
    log: list[dict[str, Any]] = field(default_factory=list)

    def predict(self, *images: tuple[str, bytes], **options: Any) -> httpx.Response:
        return self.client.post("/v1/predict", files=form(*images), **options)

    def raw(self, data: bytes) -> bytes:
        """What the server answers to bytes."""
        with socket.create_connection(self.server.server_address[:2], timeout=20) as plug:
            with suppress(ConnectionError):
                plug.sendall(data)
            got = b""
            while piece := plug.recv(65536):
                got += piece
        return got


@contextmanager
def running(model: OnnxModel, *, limits: ServerLimits = SMALL, key: str = "", local: bool = True) -> Iterator[Running]:
    log: list[dict[str, Any]] = []
    listener = listen("127.0.0.1", 0)
    with PredictionServer(model, listener, policy=AccessPolicy(key, local), limits=limits, log=log.append) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with httpx.Client(base_url=address(listener), timeout=30, trust_env=False) as client:
            try:
                yield Running(server, client, log)
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    file = tmp_path_factory.mktemp("served") / "m.onnx"
    return load(small_onnx(file, none_above=0.95, scores={"val": {"count": 9}}))


@pytest.fixture(scope="module")
def server(model: OnnxModel) -> Iterator[Running]:
    with running(model) as own:
        yield own


def is_error(reply: httpx.Response, status: int) -> bool:
    error = reply.json()["error"]
    right = reply.status_code == error["status"] == status and set(reply.json()) == {"error"}
    return right and set(error) == {"status", "code", "reason"} and bool(re.fullmatch("[a-z_]+", error["code"]))


def test_predictions_have_the_format_of_headstart_serve(server: Running) -> None:
    reply = server.predict(("red.png", RED), ("bad.png", b"words"))
    assert reply.status_code == 200
    PredictResponse.model_validate(reply.json(), strict=True)
    good, bad = reply.json()["predictions"]
    assert set(good) == set(bad) == set(ImagePrediction.model_fields)
    assert (good["name"], good["label"], good["error"]) == ("red.png", "red", None)
    assert (bad["label"], bad["probability"], bad["probabilities"]) == (None, None, [])
    assert bad["error"] == "not an image: a text file"
    assert reply.json()["version"] == server.server.model.version
    until(lambda: server.log and "images" in server.log[-1])
    assert {name: server.log[-1][name] for name in ("path", "status", "images", "unreadable")} == {
        "path": "/v1/predict",
        "status": 200,
        "images": 2,
        "unreadable": 1,
    }


def test_top_and_metadata_and_health(server: Running) -> None:
    (said,) = server.predict(("a", RED), params={"top": 2}).json()["predictions"]
    assert len(said["probabilities"]) == 2
    for top in ("0", "x", "", "-1", "00000001" + "0" * 5000, "00000001" + "0" * 9):
        assert is_error(server.predict(("a", RED), params={"top": top}), 422)
    about = server.client.get("/v1/model").json()
    assert set(about) == set(ModelInfo.model_fields)
    assert (about["classes"], about["scores"], about["calibrated"]) == (list(CLASSES), {"val": {"count": 9}}, True)
    assert server.client.get("/healthz").json() == {"alive": True}
    assert server.client.get("/readyz").json() == {"ready": True}
    head = server.client.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")


def test_errors_have_the_format_of_headstart_serve(server: Running) -> None:
    client = server.client
    assert is_error(client.get("/nothing"), 404)
    assert is_error(client.get("/v1/predict"), 405)
    assert is_error(client.delete("/v1/model"), 405)
    assert is_error(client.post("/v1/predict", content=RED), 422)
    assert is_error(client.post("/v1/predict", files=[("other", ("a.png", RED))]), 422)
    assert is_error(client.post("/v1/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 400)
    assert is_error(server.predict(*[("a.png", RED)] * 4), 413)
    assert is_error(server.predict(("a.png", bytes(300_000))), 413)
    assert is_error(client.post("/v1/predict", content=iter([b"a"])), 411)
    assert is_error(client.get("/healthz", headers={"host": "evil.example"}), 403)
    assert is_error(client.post("/v1/predict", headers={"origin": "http://evil.example"}), 403)
    (said,) = server.predict(("big.png", encoded(Image.new("RGB", (400, 300)), "PNG"))).json()["predictions"]
    assert said["error"] == "too large: 400 x 300 pixels; the limit is 0.1 million"


def test_a_key_is_needed_where_one_is_set(model: OnnxModel) -> None:
    with running(model, key="secret", local=False) as server:
        assert is_error(server.predict(("a", RED)), 401)
        assert is_error(server.predict(("a", RED), headers={"authorization": "Bearer wrong"}), 401)
        assert server.predict(("a", RED), headers={"authorization": "Bearer secret"}).status_code == 200
        assert server.client.get("/healthz").status_code == 200
        assert "secret" not in json.dumps(server.log)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"0" * 5000 + b"\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"BREW /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n", b"408"),
    ],
)
def test_invalid_and_slow_requests_get_an_error_in_the_same_format(sent: bytes, status: bytes, server: Running) -> None:
    before = len(server.log)
    got = server.raw(sent)
    assert status in got.split(b"\r\n")[0]
    assert not [entry for entry in server.log[before:] if "error" in entry]
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["status"] == int(status)


def test_a_connection_that_sends_no_headers_is_closed(server: Running) -> None:
    before = time.monotonic()
    with socket.create_connection(server.server.server_address[:2], timeout=20) as plug:
        for _ in range(4):
            time.sleep(0.2)
            with suppress(ConnectionError):
                plug.sendall(b"G")
        with suppress(ConnectionError):
            while plug.recv(1000):
                pass
    assert time.monotonic() - before < 5
    until(lambda: server.server.num_connections == 0)


def test_a_client_that_waits_for_100_continue_is_asked_for_its_body(server: Running) -> None:
    request = httpx.Request("POST", "http://localhost/v1/predict", files=form(("a.png", RED)))
    body = request.read()
    with socket.create_connection(server.server.server_address[:2], timeout=20) as plug:
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n"
        )
        plug.sendall(f"{head}Content-Type: {request.headers['content-type']}\r\n\r\n".encode())
        assert plug.recv(12) == b"HTTP/1.1 100"
        plug.sendall(body)
        got = b""
        while piece := plug.recv(65536):
            got += piece
    assert b"200 OK" in got


def test_a_client_that_sends_everything_first_receives_the_error(server: Running) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 700000\r\n\r\n"
    assert b"413" in server.raw(head + bytes(700_000)).split(b"\r\n")[0]


def test_connections_queue_and_time_are_limited(model: OnnxModel) -> None:
    with (
        running(model, limits=replace(SMALL, max_connections=1, header_timeout=5)) as server,
        socket.create_connection(server.server.server_address[:2], timeout=20),
    ):
        until(lambda: server.server.num_connections == 1)
        assert b"503" in server.raw(b"").split(b"\r\n")[0]
    with running(model, limits=replace(SMALL, max_queued_images=1)) as server:
        assert is_error(reply := server.predict(("a", RED), ("b", RED)), 503)
        assert reply.headers["retry-after"] == "1"
    with running(model, limits=replace(SMALL, max_buffered_bytes=10)) as server:
        assert is_error(server.predict(("a", RED)), 503)
    with running(model, limits=replace(SMALL, response_timeout=0.0)) as server:
        assert is_error(server.predict(("a", RED)), 504)


def test_large_images_are_predicted_one_at_a_time(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.runtime.server.SMALL_IMAGE_PIXELS", 1_000)
    active, most = [0], [0]
    predict = OnnxModel.predict_content

    def counted(self: OnnxModel, name: str, data: bytes, **options: Any) -> Any:
        if options.get("max_decoded_pixels") is not None:
            return predict(self, name, data, **options)
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.05)
        try:
            return predict(self, name, data, **options)
        finally:
            active[0] -= 1

    monkeypatch.setattr(OnnxModel, "predict_content", counted)
    with running(model) as server:
        replies: list[int] = []
        threads = [
            threading.Thread(target=lambda: replies.append(server.predict(("a", RED)).status_code)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (replies, most) == ([200] * 4, [1])


def test_a_bug_is_logged_and_not_shown(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(OnnxModel, "predict_content", broken)
    with running(model) as server:
        reply = server.predict(("a", RED))
        assert is_error(reply, 500)
        assert "secret" not in reply.text
        until(lambda: len(server.log) > 1)
        assert "a secret path" in server.log[0]["error"]


@pytest.mark.slow
def test_the_server_of_the_model_answers_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, exported = model_and_export("several labels", tmp_path_factory)
    images = [(f"{i}.png", encoded(random_image(i), "PNG")) for i in range(3)]
    images += [("bad.png", b"words"), ("line.png", encoded(Image.new("RGB", (1, 40_000)), "PNG"))]
    with served(model) as one, running(exported, limits=ServerLimits()) as two:
        found = [own.predict(*images).json() for own in (one, two)]
        about = [own.client.get("/v1/model").json() for own in (one, two)]
    assert found[0]["version"] == found[1]["version"]
    for left, right in zip(found[0]["predictions"], found[1]["predictions"], strict=True):
        for entries in (left, right):
            for place in ("probabilities", "labels"):
                entries[place] = {e["label"]: round(e["probability"], 4) for e in entries[place] or ()}
            for number in ("probability", "outlier"):
                entries[number] = round(entries[number] or 0, 4)
        assert left == right
    same = set(about[0]) - {"engine", "preprocessing"}
    assert {name: about[0][name] for name in same} == {name: about[1][name] for name in same}


def test_what_cannot_be_served_is_named(model: OnnxModel) -> None:
    with pytest.raises(OptionError, match="API key may contain ASCII"):
        serve(model, key="ä")
    with listen("127.0.0.1", 0) as taken, pytest.raises(ServerError, match="cannot listen there"):
        serve(model, port=taken.getsockname()[1])


def test_it_stops_on_request_and_warns_about_an_open_server(model: OnnxModel) -> None:
    stop, said = threading.Event(), list[str]()

    def say(text: str) -> None:
        said.append(text)
        if "is ready" in text:
            stop.set()

    serve(model, host="0.0.0.0", port=0, say=say, stop=stop)
    assert said[0].startswith("Warning: anybody who can reach this machine")
    assert re.search(r"OnnxModel\(3 classes, mean_colour\) is ready at http://0\.0\.0\.0:\d+\.", said[1])


def test_serve_in_python_accepts_an_exported_file(model: OnnxModel, tmp_path: Path) -> None:
    stop = threading.Event()

    class Stopping(SilentProgress):  # type: ignore[misc]
        def say(self, text: str) -> None:
            said.append(text)
            stop.set()

    said: list[str] = []
    serve_model(model.file, port=0, progress=Stopping(), stop=stop)
    assert "OnnxModel(3 classes, mean_colour) is ready" in said[0]
    with pytest.raises(OptionError, match="not for an ONNX file"):
        serve_model(model.file, port=0, corrections=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["headstart"], ["headstart.runtime"]])
def test_the_command_serves_until_ctrl_c_without_pytorch(command: list[str], tmp_path: Path) -> None:
    file = small_onnx(tmp_path / "m.onnx")
    start = [sys.executable, "-X", "importtime", "-m", *command, "serve", str(file), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(hs.__file__).parents[1])}
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"is ready at (http://127\.0\.0\.1:\d+)", line):
                break
        assert found
        reply = httpx.post(f"{found[1]}/v1/predict", files=form(("a", RED)), timeout=20, trust_env=False)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert reply.json()["predictions"][0]["label"] == "red"
    assert process.returncode == 0
    imported = {text.rsplit("|", 1)[-1].strip() for text in lines if text.startswith("import time:")}
    assert "numpy" in imported
    assert not imported & {"torch", "timm", "scipy", "sklearn", "onnx"}
    assert '"path": "/v1/predict", "status": 200' in rest


def test_options_of_limits_are_those_of_headstart_serve() -> None:
    from headstart.cli.serve import LIMITS as ALL

    assert set(LIMITS) < set(ALL)
    assert np.all([flag in ALL for flag in LIMITS])
