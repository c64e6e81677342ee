"""Routes of the live view of a run: server-sent events, images and the report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Final

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from headstart.data.decode import decode, jpeg_bytes
from headstart.errors import RunError, SourceError, UnreadableImage
from headstart.serve.errors import HttpError
from headstart.serve.static_files import asset
from headstart.serve.watch.run_reader import JsonObject, LogPosition, LogTail, RunReader

POLL_SECONDS: Final = 0.3
"""Seconds between two reads of the run folder."""

KEEP_ALIVE_SECONDS: Final = 10.0
"""Seconds without an event after which a comment is sent, so that proxies keep the connection open."""

THUMBNAIL_SIZE: Final = 320
"""Longer side of a thumbnail, in pixels."""

REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The report has inline scripts and styles. The sandbox gives it an opaque origin, which cannot access the server."""


def watch_router(reader: Callable[[], RunReader], *, is_stopping: Callable[[], bool] = lambda: False) -> APIRouter:
    """Routes of the view.

    Args:
        reader: returns the reader of the run to show, or raises HttpError.
        is_stopping: whether the server is about to stop; event streams then end.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/watch")
    async def view() -> Response:
        return asset("watch.html")

    @router.get("/watch/events")
    async def events(last_event_id: Annotated[str, Header()] = "") -> Response:
        stream = _events(reader(), LogPosition.read(last_event_id), is_stopping)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @router.get("/watch/summary")
    async def summary() -> Response:
        try:
            return JSONResponse(await run_in_threadpool(reader().summary), headers={"Cache-Control": "no-store"})
        except RunError as error:
            raise HttpError(404, str(error)) from error

    @router.get("/watch/images/{key}")
    async def image(key: str) -> Response:
        data = await run_in_threadpool(_thumbnail, reader(), key)
        if isinstance(data, str):
            raise HttpError(404, data)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @router.get("/watch/report")
    async def report() -> Response:
        try:
            data = await run_in_threadpool((reader().folder / "report.html").read_bytes)
        except OSError:
            raise HttpError(404, "This run has no report yet. It is written when the run finishes.") from None
        headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"}
        return Response(data, media_type="text/html; charset=utf-8", headers=headers)

    return router


def _thumbnail(reader: RunReader, key: str) -> bytes | str:
    """A JPEG thumbnail, or the reason why there is none."""
    path = reader.image_path(key)
    if path is None:
        return "No such image in this run."
    try:
        image = decode(path, min_side=THUMBNAIL_SIZE).image
    except (UnreadableImage, SourceError) as error:
        reason = error.reason if isinstance(error, UnreadableImage) else str(error).rstrip(".")
        return f"The image can no longer be read: {reason}."
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    return jpeg_bytes(image, quality=82)


async def _events(reader: RunReader, after: LogPosition, is_stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Server-sent events: state and live status whenever they change, and each line of the log once.

    The id of a log event is the position after its line, so that a page that reconnects continues there
    (``Last-Event-ID``). "reset" means that a resumed run truncated the log, which is sent again. "end" is the last
    event of a finished run.
    """
    state: JsonObject = {}
    status: JsonObject | None = None
    idle_seconds = 0.0
    while not is_stopping():
        new_state, tail, new_status = await run_in_threadpool(_read, reader, after)
        events = [] if new_state == state else [_event("state", new_state)]
        events += [_event("reset", {})] if tail.reset else []
        events += [_event("log", line, position) for position, line in tail.lines]
        events += [] if new_status == status else [_event("status", new_status)]
        after = tail.lines[-1][0] if tail.lines else LogPosition() if tail.reset else after
        state, status = new_state, new_status
        if events:
            yield b"".join(events)
            idle_seconds = 0.0
        elif state["state"] == "finished":
            yield _event("end", {})
            return
        await asyncio.sleep(POLL_SECONDS)
        idle_seconds += POLL_SECONDS
        if idle_seconds > KEEP_ALIVE_SECONDS:
            idle_seconds = 0.0
            yield b": alive\n\n"


def _read(reader: RunReader, after: LogPosition) -> tuple[JsonObject, LogTail, JsonObject | None]:
    """State, new lines of the log and live status, in this order: a finished state is sent after its last line."""
    return reader.state(), reader.tail(after), reader.status()


def _event(kind: str, data: JsonObject | bytes | None, position: LogPosition | None = None) -> bytes:
    """A server-sent event. The data is JSON on one line."""
    text = json.dumps(data).encode() if not isinstance(data, bytes) else data.strip()
    event_id = b"" if position is None else f"id: {position}\n".encode()
    return b"event: " + kind.encode() + b"\ndata: " + text + b"\n" + event_id + b"\n"
