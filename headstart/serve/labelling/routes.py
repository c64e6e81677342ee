"""Routes of the labelling page: state, images, queues, actions, training, trial, export and import."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from headstart.files import parsed_json
from headstart.serve.errors import HttpError
from headstart.serve.labelling.backend import MAX_PAGE, LabellingBackend, session_errors_as_http
from headstart.serve.labelling.events import state_events
from headstart.serve.multipart import read_form
from headstart.serve.static_files import asset

Count = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Start = Annotated[int, Query(ge=0)]
View = Annotated[str, Query(max_length=300)]


def label_router(backend: LabellingBackend, *, is_stopping: Callable[[], bool] = lambda: False) -> APIRouter:
    """Routes of the page.

    Args:
        backend: the session, its training and trial.
        is_stopping: whether the server is about to stop; event streams then end.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        return asset("label.html")

    @router.get("/v1/label/state")
    async def state() -> JSONResponse:
        return await _answer(backend.state)

    @router.get("/v1/label/events")
    async def events() -> Response:
        stream = state_events(backend.state, backend.session.wait_change, is_stopping)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    _add_image_routes(router, backend)
    _add_queue_routes(router, backend)
    _add_action_routes(router, backend)
    _add_training_routes(router, backend)
    _add_exchange_routes(router, backend)
    return router


async def _answer(work: Callable[..., Any], *arguments: Any) -> JSONResponse:
    """Response with the result of a function, which runs in a thread."""

    def run() -> Any:
        with session_errors_as_http():
            return work(*arguments)

    return JSONResponse(await run_in_threadpool(run), headers={"Cache-Control": "no-store"})


async def _body(request: Request) -> dict[str, Any]:
    """JSON object of a request.

    Raises:
        HttpError: the body is none.
    """
    try:
        document = parsed_json(await request.body())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "Expected a JSON object.")
    return document


def _text(body: dict[str, Any], key: str, default: str = "") -> str:
    """A text of a JSON object.

    Raises:
        HttpError: it is something else.
    """
    text = body.get(key, default)
    if not isinstance(text, str):
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{key}: expected text.")
    return text


def _add_image_routes(router: APIRouter, backend: LabellingBackend) -> None:
    session = backend.session

    @router.get("/v1/label/images")
    async def images(view: View = "all", start: Start = 0, count: Count = 200) -> JSONResponse:
        return await _answer(session.images, view, start, count)

    @router.get("/v1/label/ids")
    async def ids(view: View = "all") -> JSONResponse:
        return await _answer(backend.ids, view)

    @router.get("/v1/label/images/{image}")
    async def thumbnail(image: int, size: Annotated[int, Query(ge=1, le=4096)] = 160, session: str = "") -> Response:
        backend.check_token(session)
        data = await run_in_threadpool(backend.thumbnail, image, size)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"})


def _add_queue_routes(router: APIRouter, backend: LabellingBackend) -> None:
    session = backend.session

    @router.get("/v1/label/clusters")
    async def clusters() -> JSONResponse:
        return await _answer(lambda: {"clusters": session.clusters()})

    @router.get("/v1/label/queue/confirm")
    async def confirm(count: Count = 24, label: str | None = None) -> JSONResponse:
        return await _answer(session.confirm, label or None, count)

    @router.get("/v1/label/queue/ask")
    async def ask(count: Count = 10) -> JSONResponse:
        return await _answer(session.ask, count)

    @router.get("/v1/label/queue/blind")
    async def blind(count: Count = 10) -> JSONResponse:
        return await _answer(session.blind, count)

    @router.get("/v1/label/queue/mistakes")
    async def mistakes(count: Count = 20) -> JSONResponse:
        return await _answer(backend.mistakes, count)

    @router.get("/v1/label/knowledge")
    async def knowledge() -> JSONResponse:
        return await _answer(session.knowledge)


def _add_action_routes(router: APIRouter, backend: LabellingBackend) -> None:
    @router.post("/v1/label/actions")
    async def act(request: Request) -> JSONResponse:
        body = await _body(request)
        backend.check_token(body.get("session"))
        return await _answer(backend.act, body.get("action"))

    @router.post("/v1/label/undo")
    async def undo(request: Request) -> JSONResponse:
        backend.check_token((await _body(request)).get("session"))
        return await _answer(backend.session.undo)

    @router.post("/v1/label/redo")
    async def redo(request: Request) -> JSONResponse:
        backend.check_token((await _body(request)).get("session"))
        return await _answer(backend.session.redo)


def _add_training_routes(router: APIRouter, backend: LabellingBackend) -> None:
    @router.post("/v1/label/train")
    async def train(request: Request) -> JSONResponse:
        backend.check_token((await _body(request)).get("session"))
        return await _answer(backend.train)

    @router.post("/v1/label/try")
    async def try_image(request: Request) -> JSONResponse:
        (file,) = (await read_form(request)).files("file", max_count=1)
        return await _answer(backend.try_image, file.data, file.filename)

    @router.post("/v1/label/correct")
    async def correct(request: Request) -> JSONResponse:
        form = await read_form(request)
        (file,), label = form.files("file", max_count=1), form.text("label")
        backend.check_token(form.text("session"))
        return await _answer(backend.correct, file.data, label)


def _add_exchange_routes(router: APIRouter, backend: LabellingBackend) -> None:
    @router.get("/v1/label/export")
    async def download(kind: View = "csv") -> Response:
        data, media_type, name = await run_in_threadpool(backend.export_file, kind)
        ascii_name = name.encode("ascii", "replace").decode().replace('"', "'").replace("?", "_")
        headers = {"Content-Disposition": f'attachment; filename="{ascii_name}"', "Cache-Control": "no-store"}
        return Response(data, media_type=media_type, headers=headers)

    @router.post("/v1/label/export")
    async def folders(request: Request) -> JSONResponse:
        body = await _body(request)
        backend.check_token(body.get("session"))
        return await _answer(backend.export_folders, _text(body, "out"), _text(body, "how", "copy"))

    @router.post("/v1/label/import")
    async def load(request: Request) -> JSONResponse:
        if request.headers.get("content-type", "").startswith("application/json"):
            body = await _body(request)
            backend.check_token(body.get("session"))
            return await _answer(backend.import_folder, _text(body, "folder"))
        form = await read_form(request)
        backend.check_token(form.text("session"))
        (file,) = form.files("file", max_count=1)
        return await _answer(backend.import_file, file.data, file.filename, form.text("kind"))
