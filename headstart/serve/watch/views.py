"""The page's second view: a run that is watched, live by server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from headstart.data.decode import decode, jpeg_bytes
from headstart.errors import RunError, UnreadableImage
from headstart.serve.errors import Refusal
from headstart.serve.static_files import asset
from headstart.serve.watch.run_reader import Place, Watched

LOOK_EVERY = 0.3
"""Seconds between two looks at the folder."""

ALIVE_EVERY = 10.0
"""Seconds without an event after which a comment keeps the line open."""

SIDE = 320
"""Of a picture, in pixels."""

REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A report carries its script and style in itself; in a sandbox it can reach nothing of the server."""


def watch_router(watched: Watched, *, ending: Callable[[], bool] = lambda: False) -> APIRouter:
    """The routes of the view.

    Args:
        watched: the run.
        ending: whether the server is about to stop: then streams end.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/watch")
    async def view() -> Response:
        return asset("watch.html")

    @router.get("/watch/events")
    async def events(last_event_id: Annotated[str, Header()] = "") -> Response:
        told = _events(watched, Place.read(last_event_id), ending)
        return StreamingResponse(told, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @router.get("/watch/summary")
    async def summary() -> Response:
        try:
            return JSONResponse(await run_in_threadpool(watched.summary), headers={"Cache-Control": "no-store"})
        except RunError as error:
            raise Refusal(404, str(error)) from error

    @router.get("/watch/pictures/{key}")
    async def picture(key: str) -> Response:
        data = await run_in_threadpool(_small, watched, key)
        if isinstance(data, str):
            raise Refusal(404, data)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @router.get("/watch/report")
    async def report() -> Response:
        try:
            data = await run_in_threadpool((watched.folder / "report.html").read_bytes)
        except OSError:
            raise Refusal(404, "This run has no report yet.") from None
        headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"}
        return Response(data, media_type="text/html; charset=utf-8", headers=headers)

    return router


def _small(watched: Watched, key: str) -> bytes | str:
    """A small JPEG, or why there is none."""
    path = watched.picture(key)
    if path is None:
        return "No such picture."
    try:
        image = decode(path, min_side=SIDE).image
    except UnreadableImage as error:
        return f"The picture cannot be shown any more: {error.reason}."
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return jpeg_bytes(image, quality=82)


async def _events(watched: Watched, after: Place, ending: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The state and the moment whenever they change, and each line of the log once, behind ``after``.

    Lines carry the place behind them as their id, so that a page that comes back goes on where it was; where the log
    was cut meanwhile, "reset" says that all comes anew. "end" is the last event of a finished run.
    """
    state: dict[str, Any] = {}
    now: dict[str, Any] | None = None
    quiet = 0.0
    while not ending():
        seen = await run_in_threadpool(watched.state)
        tail = await run_in_threadpool(watched.tail, after)
        moment = await run_in_threadpool(watched.now)
        made = []
        if seen != state:
            made.append(_event("state", seen))
        if tail.anew:
            after = Place()
            made.append(_event("reset", {}))
        for place, line in tail.lines:
            after = place
            made.append(_event("log", line, place))
        if moment != now:
            made.append(_event("now", moment))
        state, now = seen, moment
        if made:
            yield b"".join(made)
            quiet = 0.0
        if state["state"] == "finished" and not made:
            yield _event("end", {})
            return
        await asyncio.sleep(LOOK_EVERY)
        quiet += LOOK_EVERY
        if quiet > ALIVE_EVERY:
            quiet = 0.0
            yield b": alive\n\n"


def _event(kind: str, data: dict[str, Any] | bytes | None, place: Place | None = None) -> bytes:
    """A server-sent event; JSON, as it is written here, has no line breaks."""
    text = json.dumps(data).encode() if not isinstance(data, bytes) else data.strip()
    name = b"" if place is None else f"id: {place}\n".encode()
    return b"event: " + kind.encode() + b"\ndata: " + text + b"\n" + name + b"\n"
