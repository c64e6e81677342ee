"""The API over a model, for programs; see ``page.py`` for people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, File, Query, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from headstart.serve.assets import PageHeaders
from headstart.serve.corrections import Corrections
from headstart.serve.documents import Answer, ModelDocument, model_document, picture_answer
from headstart.serve.guard import Admission, Gone, Guard, write_line
from headstart.serve.page import page_router
from headstart.serve.problem import Problem, Refusal, problem_document
from headstart.serve.service import Service
from headstart.serve.watch import watch_router
from headstart.serve.watching import Watched

NAME_LENGTH = 255
"""Characters of a picture's name that are given back."""

Result = TypeVar("Result")
Log = Callable[[dict[str, Any]], None]

WHY = {
    400: "The body is no multipart form.",
    401: "The key is missing or wrong.",
    403: "Another site's page sends it, or the server is asked for by a foreign name.",
    408: "The body was not there in time.",
    413: "The body is too large, or holds too many pictures.",
    422: "The form or a parameter is not as described.",
    503: "Too much waits already, or the server is about to stop; Retry-After says when to send it again.",
    504: "No answer in time.",
}
"""Every refusal of this server."""


class Alive(BaseModel):
    """That the process lives."""

    alive: bool = True


class Ready(BaseModel):
    """That requests are taken."""

    ready: bool = True


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that are no answers, for its description."""
    return {status: {"model": Problem, "description": WHY[status]} for status in statuses}


def build_app(
    service: Service,
    *,
    admission: Admission | None = None,
    corrections: Corrections | None = None,
    log: Log | None = write_line,
) -> FastAPI:
    """The application.

    Args:
        service: what answers; it is started and closed with the application.
        admission: who is let in.
        corrections: where the page keeps them; None where nothing can be corrected.
        log: gets an entry for each request; None for no log.
    """
    admission = admission or Admission()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="Headstart",
        version=version("headstart"),
        description=f"A classifier of {len(service.model.classes):,} classes.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(
        api_router(service), dependencies=[Security(HTTPBearer(auto_error=False))] if admission.key else []
    )
    app.include_router(health_router(service))
    app.include_router(page_router(service, corrections))
    if service.run is not None:
        watched = Watched(service.run, served=True)
        app.include_router(watch_router(watched, ending=lambda: service.traffic.draining))
    app.add_exception_handler(HTTPException, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(
        Guard,
        limits=service.limits,
        admission=admission,
        traffic=service.traffic,
        metrics=service.metrics,
        log=log,
    )
    app.add_middleware(PageHeaders)
    return app


def api_router(service: Service) -> APIRouter:
    """What programs ask."""
    router = APIRouter()
    most = {"maxItems": service.limits.images}  # said here, and refused as too large, not as a form that is wrong
    described = File(min_length=1, description="The pictures: JPEG, PNG, WebP, GIF, ...", json_schema_extra=most)

    @router.post("/v1/predict", responses=refusals(400, 401, 403, 408, 413, 422, 503, 504), tags=["model"])
    async def predict(
        request: Request,
        files: list[UploadFile] = described,
        top: Annotated[int | None, Query(ge=1, le=1_000_000, description="Classes to list; all if left out.")] = None,
    ) -> Answer:
        """Classify pictures. One that cannot be read says why in its own place, and keeps no other from its answer."""
        pictures = await read_pictures(files, most=service.limits.images)
        predictions = await unless_gone(request, service.predict(pictures))
        request.state.pictures = len(predictions)
        request.state.faults = sum(own.label is None for own in predictions)
        return Answer(version=service.model.version, predictions=[picture_answer(own, top=top) for own in predictions])

    @router.get("/v1/model", responses=refusals(401, 403, 503), tags=["model"])
    async def model() -> ModelDocument:
        """What answers: its classes, what it does to a picture, what it scored."""
        return model_document(service.model, engine=None if service.engine is None else service.engine.name)

    @router.get(
        "/metrics",
        responses=refusals(401, 403, 503) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
        tags=["operation"],
    )
    async def metrics() -> Response:
        """Counters in Prometheus's text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def health_router(service: Service) -> APIRouter:
    """What whoever runs the server asks; needs no key."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", responses=refusals(403))
    async def healthz() -> Alive:
        """Whether the process lives."""
        return Alive()

    @router.get("/readyz", responses=refusals(403, 503))
    async def readyz() -> Ready:
        """Whether the model is warmed up and new requests are taken."""
        if not service.ready:
            raise Refusal(503, "Not warmed up yet, or about to stop.", retry_after=1)
        return Ready()

    return router


async def read_pictures(files: list[UploadFile], *, most: int) -> list[tuple[str, bytes]]:
    """Names and bytes of uploaded files.

    Args:
        files: of a form.
        most: of them that are taken.

    Raises:
        Refusal: more.
    """
    if len(files) > most:
        raise Refusal(413, f"{len(files):,} pictures in one request; at most {most:,} are taken.")
    return [(plain_name(file.filename), await file.read()) for file in files]


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work that is given up where nobody waits for it any more.

    Raises:
        Gone: the client has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def plain_name(name: str | None) -> str:
    """A file's name as it can stand in JSON: no halves of characters, and no novel."""
    return (name or "").encode(errors="backslashreplace").decode()[:NAME_LENGTH]


async def _problem(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reason = WHY.get(error.status_code, HTTPStatus(error.status_code).description or str(error.detail))
    return JSONResponse(problem_document(error.status_code, reason), error.status_code, error.headers)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(map(str, own['loc']))}: {own['msg']}" for own in error.errors()[:5]]
    return JSONResponse(problem_document(422, "; ".join(found)[:1000]), 422)
