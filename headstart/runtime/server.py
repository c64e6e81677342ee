"""Server of an exported ONNX file on Python's standard library: the prediction API of ``headstart serve``.

Each connection has a thread and carries one request. Images are decoded and run in these threads, as many at a time as
there are processors, and large images one at a time.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, final
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ..concurrency import usable_cpus
from ..errors import LargeImage
from ..prediction import Prediction
from ..serve.access import AccessPolicy, check_key
from ..serve.errors import ERROR_DESCRIPTIONS, HttpError, error_document
from ..serve.limits import (
    LINGER_SECONDS,
    MAX_DISCARDED_BODIES,
    SMALL_IMAGE_PIXELS,
    ServerLimits,
    limit_option,
    limits_from_options,
)
from ..serve.listener import address, is_loopback, listen, stop_signals
from ..serve.multipart import MultipartForm, parse_form
from ..serve.request_log import request_entry, timestamp, write_json_line
from ..serve.responses import prediction_entry, printable_name
from .onnx_model import OnnxModel

__all__ = ["LIMITS", "PredictionServer", "limit_option", "limits_from_options", "serve"]

LIMITS: Final = ("max-body", "max-images", "max-pixels", "queue", "connections", "timeout")
"""Options of the limits in ``serve.limits`` that this server has."""

ROUTES: Final = {"/v1/predict": "POST", "/v1/model": "GET", "/healthz": "GET", "/readyz": "GET"}
"""Path -> method."""

POLL_SECONDS: Final = 0.05
MAX_TOP: Final = 1_000_000
MAX_DIGITS: Final = 20
"""Digits of a number in a request; Python refuses to convert more than some thousands."""

CHUNK: Final = 65_536
"""Bytes that are read from a connection at once."""

CLIENT_CLOSED_REQUEST: Final = 499
"""Logged status if the client has disconnected before the response."""

Log = Callable[[dict[str, Any]], None]


def say_on_stderr(text: str) -> None:
    """Prints a message."""
    print(text, file=sys.stderr, flush=True)


@final
class PredictionServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """HTTP server of an exported file.

    Args:
        model: the exported file.
        listener: the listening socket, see ``serve.listener.listen``.
        policy: which requests are accepted.
        limits: limits of the server.
        log: called with one entry per request; None for no log.

    Attributes:
        is_draining: whether new requests are refused, because the server is about to stop.
    """

    daemon_threads = True

    def __init__(
        self,
        model: OnnxModel,
        listener: socket.socket,
        *,
        policy: AccessPolicy | None = None,
        limits: ServerLimits | None = None,
        log: Log | None = write_json_line,
    ) -> None:
        super().__init__(listener.getsockname()[:2], _Connection, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.model, self.policy, self.limits, self.log = model, policy or AccessPolicy(), limits or ServerLimits(), log
        self.is_draining = False
        self._lock = threading.Lock()
        self._counts = {"connections": 0, "bytes": 0, "images": 0}
        self._slots = threading.BoundedSemaphore(usable_cpus())
        self._large = threading.BoundedSemaphore(1)

    @property
    def num_connections(self) -> int:
        """Open connections."""
        return self._counts["connections"]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the thread of a connection, or refuses it."""
        with self._lock:
            is_full = self._counts["connections"] >= self.limits.max_connections
            self._counts["connections"] += not is_full
        if is_full:
            _refuse_connection(request)
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._counts["connections"] -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Logs an error of a connection's thread; disconnected clients are none."""
        self.write_log({"time": timestamp(), "error": traceback.format_exc()})

    def write_log(self, entry: dict[str, Any]) -> None:
        """Writes a log entry."""
        if self.log is not None:
            self.log(entry)

    @contextmanager
    def counted(self, what: str, count: int, limit: int, reason: str) -> Iterator[None]:
        """Counts "bytes" or "images" during the block.

        Raises:
            HttpError: they would exceed ``limit`` (503).
        """
        with self._lock:
            if self._counts[what] + count > limit:
                raise HttpError(503, reason, retry_after=1)
            self._counts[what] += count
        try:
            yield
        finally:
            with self._lock:
                self._counts[what] -= count

    def predict(self, images: list[tuple[str, bytes]]) -> list[Prediction]:
        """Predictions of named images, with all classes.

        Raises:
            HttpError: the queue is full (503), or the result took too long (504).
        """
        until = time.monotonic() + self.limits.response_timeout
        full = f"The queue is full; the limit is {self.limits.max_queued_images:,} images. Try again later."
        with self.counted("images", len(images), self.limits.max_queued_images, full):
            return [self._predict_one(name, data, until) for name, data in images]

    def _predict_one(self, name: str, data: bytes, until: float) -> Prediction:
        run = partial(self.model.predict_content, name, data, max_pixels=self.limits.max_pixels)
        with self._waiting(self._slots, until), suppress(LargeImage):
            return run(max_decoded_pixels=SMALL_IMAGE_PIXELS)
        with self._waiting(self._large, until), self._waiting(self._slots, until):
            return run()

    @contextmanager
    def _waiting(self, semaphore: threading.BoundedSemaphore, until: float) -> Iterator[None]:
        left = until - time.monotonic()
        if left <= 0 or not semaphore.acquire(timeout=left):
            raise HttpError(
                504,
                f"No result within {self.limits.response_timeout:g} s. Send fewer or smaller images per request.",
            )
        try:
            yield
        finally:
            semaphore.release()

    def model_document(self) -> dict[str, Any]:
        """Metadata of the model, with the keys of ``serve.schemas.ModelInfo``."""
        model, metadata = self.model, self.model.metadata
        return {
            "version": model.version,
            "classes": list(model.classes),
            "multi_label": model.thresholds is not None,
            "thresholds": None if model.thresholds is None else list(model.thresholds),
            "backbone": metadata.backbone,
            "preprocessing": metadata.preprocessing,
            "fit": model.preprocessing.sentence,
            "calibrated": metadata.is_calibrated,
            "calibration": metadata.calibration,
            "detects_out_of_distribution": metadata.none_above is not None,
            "scores": metadata.scores,
            "engine": f"onnxruntime ({metadata.precision})",
        }


def _whole_number(text: str) -> int | None:
    """The number that a client sent in decimal digits; None for anything else, and for more than 20 digits."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def _refuse_connection(request: socket.socket) -> None:
    body = json.dumps(error_document(503, "Too many connections. Try again later.")).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with suppress(OSError):
        request.settimeout(1)
        request.sendall(f"{head}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n".encode() + body)


@final
class _Connection(BaseHTTPRequestHandler):
    """One connection, which carries one request."""

    server: PredictionServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        seconds = self.server.limits.header_timeout
        super().setup()
        self.connection.settimeout(seconds)
        self._started, self._status, self._unread = time.perf_counter(), CLIENT_CLOSED_REQUEST, 0
        self._counts: dict[str, int] = {}
        # A client that sends one byte of its headers at a time would reset the timeout of the socket with each.
        self._watch = threading.Timer(seconds, self._stop_reading)
        self._watch.daemon = True
        self._watch.start()

    def finish(self) -> None:
        self._watch.cancel()
        with suppress(OSError):  # the client has disconnected
            super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def _stop_reading(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def handle_expect_100(self) -> bool:
        return True  # ``_body`` asks for the body, once the request is accepted

    def version_string(self) -> str:
        return "headstart-runtime"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: ``_respond`` writes the log."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """An error that Python's parser found in the request."""
        self._send_error(HttpError(code, f"Not a valid HTTP request: {message or HTTPStatus(code).phrase}."))
        self._write_entry(getattr(self, "path", ""))

    def _respond(self) -> None:
        self._watch.cancel()
        self.close_connection = True
        path = ""
        try:
            path = self._path()
            self._send(200, self._result(path))
        except HttpError as error:
            self._send_error(error)
        except (ConnectionError, TimeoutError):
            pass
        except Exception:  # a bug: logged here and never shown to the client
            self.server.write_log({"time": timestamp(), "error": traceback.format_exc()})
            self._send_error(HttpError(500, "Internal error of the server. Its log has the details."))
        self._write_entry(path)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _respond  # noqa: N815

    def _path(self) -> str:
        """Path of the request.

        Raises:
            HttpError: the target of the request is not a URL (400).
        """
        try:
            return urlsplit(self.path).path
        except ValueError:  # such as http://[
            raise HttpError(400, "The target of the request is not a valid URL.") from None

    def _write_entry(self, path: str) -> None:
        seconds = time.perf_counter() - self._started
        self.server.write_log(request_entry(self.command or "other", path, self._status, seconds) | self._counts)

    def _result(self, path: str) -> dict[str, Any]:
        """The document of the response.

        Raises:
            HttpError: the request is refused.
        """
        self._unread = self._declared_length()
        self.server.policy.check(self.command, path, self.headers)
        expected = ROUTES.get(path)
        if expected is None:
            raise HttpError(404, HTTPStatus(404).description)
        if (expected == "POST") != (self.command == "POST") or self.command not in ("GET", "HEAD", "POST"):
            raise HttpError(405, HTTPStatus(405).description)
        if path == "/healthz":
            return {"alive": True}
        if self.server.is_draining:
            raise HttpError(503, ERROR_DESCRIPTIONS[503], retry_after=5)
        if path == "/readyz":
            return {"ready": True}
        return self._predict() if path == "/v1/predict" else self.server.model_document()

    def _predict(self) -> dict[str, Any]:
        limits, top = self.server.limits, self._top()
        full = "Too many large requests at a time. Try again later."
        with self.server.counted("bytes", self._unread, limits.max_buffered_bytes, full):
            form = MultipartForm(parse_form(self.headers.get("content-type", ""), self._body()))
            parts = form.files("files", max_count=limits.max_images)
            predictions = self.server.predict([(printable_name(part.filename), part.data) for part in parts])
        self._counts = {"images": len(predictions), "unreadable": sum(one.label is None for one in predictions)}
        entries = [prediction_entry(prediction, top=top) for prediction in predictions]
        return {"version": self.server.model.version, "predictions": entries}

    def _top(self) -> int | None:
        given = parse_qs(urlsplit(self.path).query, keep_blank_values=True).get("top")
        if given is None:
            return None
        top = _whole_number(given[-1])
        if top is None or not 1 <= top <= MAX_TOP:
            raise HttpError(422, f"query.top: expected a whole number from 1 to {MAX_TOP:,}.")
        return top

    def _declared_length(self) -> int:
        """Size of the body in bytes.

        Raises:
            HttpError: it is not declared (411), not a number (400), or too large (413).
        """
        if "transfer-encoding" in self.headers:
            raise HttpError(411, "Send the body with a Content-Length header.")
        declared = _whole_number(self.headers.get("content-length", "0").strip())
        if declared is None:
            raise HttpError(400, f"The Content-Length header is not a number of at most {MAX_DIGITS} digits.")
        limit = self.server.limits.max_body_bytes
        if declared > limit:
            self._unread = declared
            raise HttpError(
                413, f"The request body is larger than {limit:,} bytes. Send fewer or smaller images per request."
            )
        return declared

    def _body(self) -> bytes:
        """The body of the request.

        Raises:
            HttpError: it did not arrive in time (408).
        """
        if self.headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        seconds, pieces = self.server.limits.body_timeout, list[bytes]()
        until = time.monotonic() + seconds
        try:
            while self._unread:
                self.connection.settimeout(max(1e-3, until - time.monotonic()))
                piece = self.rfile.read1(min(CHUNK, self._unread))
                if not piece:
                    raise ConnectionResetError
                pieces.append(piece)
                self._unread -= len(piece)
        except TimeoutError:
            raise HttpError(408, f"The request body did not arrive within {seconds:g} s.") from None
        self.connection.settimeout(self.server.limits.response_timeout)
        return b"".join(pieces)

    def _send(self, status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.request_version = self.protocol_version  # or a request that does not name one gets no headers
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in (sent | {"X-Content-Type-Options": "nosniff"} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self._status = int(status)

    def _send_error(self, error: HttpError) -> None:
        """Sends an error, and discards the rest of the body: otherwise a client that sends all first is reset."""
        self.close_connection = True
        with suppress(OSError):  # the client has disconnected
            self._send(error.status, error_document(error.status, error.reason), error.headers)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_SECONDS)
            most = min(self._unread, MAX_DISCARDED_BODIES * self.server.limits.max_body_bytes)
            until = time.monotonic() + self.server.limits.body_timeout
            while most > 0 and time.monotonic() < until and (piece := self.connection.recv(CHUNK)):
                most -= len(piece)


def serve(
    model: OnnxModel,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str = "",
    limits: ServerLimits | None = None,
    say: Callable[[str], None] = say_on_stderr,
    stop: threading.Event | None = None,
) -> None:
    """Serves an exported file over HTTP until SIGTERM or SIGINT, or until ``stop`` is set; answers active requests.

    Args:
        model: the exported file.
        host: name or address to listen on.
        port: 0 for any free port.
        key: API key that clients must send; "" for none.
        limits: limits of the server.
        say: receives the URL as soon as the server is ready, and a warning if it is open without a key.
        stop: stops the server when it is set.

    Raises:
        OptionError: the key has characters that a header cannot contain.
        ServerError: the address cannot be used.
        ExportError: the file cannot be run.
    """
    check_key(key)
    if not is_loopback(host) and not key:
        say("Warning: anybody who can reach this machine can use the server. Set a key (HEADSTART_KEY).")
    model.predict(
        np.zeros((64, 64, 3), np.uint8)
    )  # warm-up: the first run is slower, and finds a graph that cannot run
    policy = AccessPolicy(key, is_loopback(host))
    with listen(host, port) as listener, PredictionServer(model, listener, policy=policy, limits=limits) as server:
        thread = threading.Thread(
            target=partial(server.serve_forever, POLL_SECONDS), name="headstart-server", daemon=True
        )
        with stop_signals() as signals:
            thread.start()
            say(f"{model!r} is ready at {address(listener)}. Stop it with Ctrl-C.")
            while not signals and not (stop is not None and stop.is_set()):
                time.sleep(POLL_SECONDS)
            _drain(server, signals)
        server.shutdown()


def _drain(server: PredictionServer, signals: list[int]) -> None:
    """Refuses new requests and waits for the active ones; a second signal ends it at once."""
    server.is_draining = True
    until = time.monotonic() + server.limits.drain_timeout
    while server.num_connections and time.monotonic() < until and len(signals) < 2:
        time.sleep(POLL_SECONDS)
