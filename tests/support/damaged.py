"""Damaged HTTP requests from a seed: a valid request with one to three random faults."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

ROUTES = (
    ("POST", "/v1/predict"),
    ("POST", "/v1/explain"),
    ("POST", "/v1/nearest"),
    ("POST", "/v1/corrections"),
    ("GET", "/v1/model"),
    ("GET", "/v1/page"),
    ("GET", "/v1/corrections"),
    ("GET", "/v1/corrections/0123456789abcdef01234567"),
    ("DELETE", "/v1/corrections/0123456789abcdef01234567"),
    ("GET", "/metrics"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/page/page.css"),
    ("GET", "/watch"),
    ("GET", "/watch/summary"),
    ("GET", "/watch/events"),
    ("GET", "/watch/report"),
    ("GET", "/watch/images/0123"),
)

HEADERS = [
    "Accept",
    "Accept-Encoding",
    "Accept-Language",
    "Authorization",
    "Connection",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Type",
    "Cookie",
    "Expect",
    "Forwarded",
    "Host",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Origin",
    "Range",
    "Referer",
    "Sec-Fetch-Site",
    "Upgrade",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Request-Id",
]

VALUES = (
    b"", b" ", b";", b",", b"=", b"\"", b"'", b"[", b"]", b"::", b"%", b"%00", b"%ff%fe", b"null", b"-1", b"0",
    b"1e999",    b"\xb2", b"\xff\xfe\x80", b"http://[", b"http://[127.0.0.1]", b"http://[::1", b"http://localhost:99999999",
    b"//localhost", b"http://localhost@evil.example", b"localhost:x", b"[::1", b"[::1]:80:80", b"127.0.0.1:0x50",
    b"Bearer", b"Bearer \xff\xff", b"Bearer " + b"k" * 3000, b"bearer  s3cret s3cret", b"bytes=abc", b"bytes=-",
    b"bytes=0-,1-,2-,-", b"bytes=99999999999999999999999-", b"bytes=5-1", b"chunks=0-1", b"text/html;q=x",
    b"*/*;q=1e400",    b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=\"b",
    b"multipart/form-data; boundary=" + b"b" * 4000, b"multipart/form-data; boundary=\xff\x80",
    b"multipart/form-data; boundary*=utf-99''b", b"multipart/form-data; charset=undefined; boundary=b",
    b"multipart/mixed; boundary=b", b"application/json", b"application/x-www-form-urlencoded; charset=utf-7",
    b"for=\"[2001:db8::1\";proto=http\x80", b"a=b; c=\"d", b"=;=;=", b"W/\"", b"Wed, 99 Foo 0000 99:99:99 GMT",
    b"17-zzzzzzzz", b"9" * 400, b"-" * 400, b"()<>@,;:\\\"/[]?={}", b"100-continue; x",
    b"websocket", b"gzip;q=\xe2\x82",
)  # fmt: skip

QUERIES = (
    b"", b"top=0", b"top=-1", b"top=x", b"top=1e9", b"top=" + b"9" * 5000, b"top=%00", b"top=1&top=2", b"%", b"%zz=%zz",
    b"=", b"&&&&", b"\xff=\xff", b"top[]=1", b"top=%ff%fe", b"a" * 5000, b";top=1", b"top=1;top=2", b"top=%D9%A3",
)  # fmt: skip

DISPOSITIONS = (
    b'form-data; name="files"; filename="a\\"b.jpg"', b"form-data; name=files; filename=a.jpg", b"form-data",
    b'form-data; name="files"', b'form-data; name="files"; filename*=UTF-8\'\'%e2%82%ac.jpg',
    b"form-data; name=\"files\"; filename*=utf-99'x'%ff", b"form-data; name=\"files\"; filename*=UTF-8''%ff%fe",
    b"form-data; name*=UTF-8''files; filename*0=a; filename*1*=b", b"form-data; name=\"files\"; filename*='''''",
    b'form-data; name="files"; filename="\xed\xa0\x80.jpg"', b'form-data; name="files"; filename="C:\\dir\\"',
    b'attachment; name="files";;;; filename', b'form-data; name="fi\x00les"',
    b'form-data; name="' + b"n" * 20_000 + b'"',
    b"; ; =; name=\"files\"", b'form-data; name="files"; name="file"', b"\xff\xfe", b"",
)  # fmt: skip


@dataclass
class Damaged:
    """An HTTP request."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def raw(self) -> bytes:
        """The request as bytes for one connection; characters that are invalid in headers are dropped."""
        target = self.path.encode("ascii", "replace").replace(b" ", b"%20").replace(b"\0", b"%00")
        query = bytes(c if 32 < c < 127 else 63 for c in self.query)[:4000]
        lines = [f"{self.method} ".encode() + target + (b"?" + query if query else b"") + b" HTTP/1.1"]
        lines += [name + b": " + value[:4000] for name, value in self.headers if name.lower() != b"connection"]
        return b"\r\n".join([*lines, b"Connection: close", b"", b""]) + self.body


def form(chance: random.Random, images: Sequence[bytes], boundary: bytes) -> bytes:
    """A multipart form, usually valid."""
    parts = []
    for name in chance.choice([[b"files"], [b"file", b"label"], [b"label"], [b"files"] * 3, [], [b"files"] * 12]):
        head = b'Content-Disposition: form-data; name="' + name + b'"; filename="a.jpg"'
        if chance.random() < 0.3:
            head = b"Content-Disposition: " + chance.choice(DISPOSITIONS)
        if chance.random() < 0.1:
            head = chance.choice(
                [b"", b"X", b"X: " + b"y" * 20_000, b"Content-Type: image/jpeg", b"\r\n", head + b"\r\n y"]
            )
        data = chance.choice([b"a", b"\xff\xfe", b"b" * 300]) if name == b"label" else chance.choice(images)
        parts.append(b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n")
    whole = b"".join([*parts, b"--" + boundary + b"--\r\n"])
    return chance.choice([b"", b"", b"", b"preamble\r\n"]) + whole + chance.choice([b"", b"", b"epilogue", b"\r\n--b"])


def spoilt(body: bytes, chance: random.Random) -> bytes:
    """Damages a body at random."""
    kind = chance.randrange(5)
    if kind == 0:
        return body[: chance.randrange(len(body) + 1)]
    if kind == 1:
        changed = bytearray(body or b"x")
        for _ in range(chance.randrange(1, 40)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    if kind == 2:
        return chance.randbytes(chance.randrange(3000))
    if kind == 3:
        return b"--b" * chance.randrange(1, 5000)
    return body + body


def damaged(chance: random.Random, images: Sequence[bytes], key: str = "") -> Damaged:
    """A random damaged request."""
    method, path = chance.choice(ROUTES)
    boundary = b"b0undary"
    body = form(chance, images, boundary) if method == "POST" else b""
    headers = {b"host": b"localhost", b"accept": b"*/*"}
    if key:
        headers[b"authorization"] = b"Bearer " + key.encode()
    if body:
        headers[b"content-type"] = b"multipart/form-data; boundary=" + boundary
        headers[b"content-length"] = str(len(body)).encode()
    own = Damaged(method, path, b"", [], body)
    more = []
    for _ in range(chance.randrange(1, 4)):
        kind = chance.randrange(8)
        if kind < 4:
            name = chance.choice(HEADERS).lower().encode()
            headers[name] = chance.choice([*VALUES, chance.randbytes(20).replace(b"\r", b"").replace(b"\n", b"")])
        elif kind == 4:
            own.query = chance.choice(QUERIES)
        elif kind == 5:
            own.method = chance.choice(["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "get", "BREW", "POST", "DELETE"])
        elif kind == 6:
            tail = ["", "/", "//", "/..", "/%00", "/\u20ac", "/" + "x" * 3000, "/\x00", "/a b", "/%2e%2e%2f", "/\udc80"]
            own.path = chance.choice(
                [path + chance.choice(tail), chance.choice(tail) or "/", path.upper(), "/page/" + "y"]
            )
        elif body:
            own.body = spoilt(body, chance)
            headers[b"content-length"] = str(len(own.body)).encode()
            if chance.random() < 0.2:
                headers[b"content-length"] = chance.choice([b"x", b"-1", b"\xb2", b"9" * 30, b"0", b"1, 2", b""])
        else:
            more.append((b"x-more", chance.choice(VALUES)))
    own.headers = [*headers.items(), *more]
    return own


async def ask(app: ASGIApp, request: Damaged, *, under: str = "") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the response of an application; AssertionError without a response.

    ``under`` is a path prefix, for an application that is mounted in this one.
    """
    sent: list[dict[str, Any]] = []
    pieces = [request.body[i : i + 50_000] for i in range(0, len(request.body), 50_000)] or [b""]

    async def receive() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        if not request.path.startswith("/watch/events"):
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    path = request.path.encode(errors="replace").decode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": under + path,
        "raw_path": (under + path).encode(),
        "root_path": "",
        "query_string": request.query,
        "headers": request.headers,
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }
    await asyncio.wait_for(app(scope, receive, send), 30)
    starts = [own for own in sent if own["type"] == "http.response.start"]
    if not starts and request.path.startswith("/watch/events"):  # the client disconnected before the response
        return 499, {}, b""
    assert len(starts) == 1, (request, sent)
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in starts[0]["headers"]}
    return starts[0]["status"], headers, b"".join(own.get("body", b"") for own in sent[1:])


def fault_of(request: Damaged, status: int, headers: dict[str, str], body: bytes) -> str:
    """The fault of a response to a damaged request; "" for none."""
    if not (status < 500 or status == 503):
        return f"status {status}"
    if request.method == "HEAD":
        return "a body for HEAD" if body else ""
    if 400 <= status != 499:
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            return f"no problem document: {status} {body[:200]!r}"
        if error["status"] != status or not error["reason"]:
            return f"another status in the document: {status} {error}"
    return ""


async def ask_all(
    app: ASGIApp, requests: Sequence[Damaged], each: Callable[[Damaged, int, dict[str, str], bytes], None]
) -> None:
    """Sends requests to an application in this process, 16 concurrently."""
    line = iter(requests)

    async def client() -> None:
        for request in line:
            each(request, *await ask(app, request))

    await asyncio.gather(*(client() for _ in range(16)))
