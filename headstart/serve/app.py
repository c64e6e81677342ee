"""The API over a model, for programs; see ``page.py`` for people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from headstart.serve.batching import Service
from headstart.serve.corrections import Corrections
from headstart.serve.errors import Problem, Refusal, problem_document
from headstart.serve.middleware import Admission, Guard, unless_gone, write_line
from headstart.serve.multipart import Part, read_form
from headstart.serve.page import page_router
from headstart.serve.schemas import Answer, ModelDocument, model_document, picture_answer
from headstart.serve.static_files import PageHeaders, asset_router
from headstart.serve.watch.run_reader import Watched
from headstart.serve.watch.views import watch_router

NAME_LENGTH = 255
"""Characters of a picture's name that are given back."""

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
        redirect_slashes=False,  # a redirect would be built from the Host header
    )
    app.state.service = service
    routers = [api_router(service), health_router(service), page_router(service, corrections), asset_router()]
    if service.run is not None:
        watched = Watched(service.run, served=True)
        routers.append(watch_router(watched, ending=lambda: service.traffic.draining))
    for router in routers:
        keyed = bool(admission.key) and router is routers[0]  # in the description; ``Guard`` asks for it
        app.include_router(router, dependencies=[Security(HTTPBearer(auto_error=False))] if keyed else [])
    app.add_exception_handler(HTTPException, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(
        Guard,
        limits=service.limits,
        admission=admission,
        traffic=service.traffic,
        metrics=service.metrics,
        name_path=path_namer([*app.routes, *(route for router in routers for route in router.routes)]),
        log=log,
    )
    app.add_middleware(PageHeaders)
    return app


def api_router(service: Service) -> APIRouter:
    """What programs ask."""
    router = APIRouter()
    file = {"type": "string", "format": "binary"}
    files = {
        "type": "array",
        "items": file,
        "minItems": 1,
        "maxItems": service.limits.images,
        "description": "The images: JPEG, PNG, WebP, GIF, ...",
    }
    form = {"schema": {"type": "object", "required": ["files"], "properties": {"files": files}}}
    described = {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}

    @router.post(
        "/v1/predict",
        responses=refusals(400, 401, 403, 408, 413, 422, 503, 504),
        openapi_extra=described,
        tags=["model"],
    )
    async def predict(
        request: Request,
        top: Annotated[int | None, Query(ge=1, le=1_000_000, description="Classes to list; all if left out.")] = None,
    ) -> Answer:
        """Classify pictures. One that cannot be read says why in its own place, and keeps no other from its answer."""
        parts = (await read_form(request)).files("files", most=service.limits.images)
        predictions = await unless_gone(request, service.predict(named(parts)))
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
        service.start()  # where no lifespan has run
        if not service.ready:
            raise Refusal(503, "Not warmed up yet, or about to stop.", retry_after=1)
        return Ready()

    return router


def path_namer(routes: Sequence[BaseRoute]) -> Callable[[str], str]:
    """A function that gives the path of the route that a request's path belongs to; "other" for none."""
    known = {own.path: own.path_regex for own in routes if isinstance(own, Route)}

    def name(path: str) -> str:
        return next((own for own, pattern in known.items() if pattern.match(path)), "other")

    return name


def named(parts: Sequence[Part]) -> list[tuple[str, bytes]]:
    """Names and bytes of uploaded files."""
    return [(plain_name(part.filename), part.data) for part in parts]


def plain_name(name: str) -> str:
    """A file's name as it can stand in JSON, cut to ``NAME_LENGTH``."""
    return name.encode(errors="backslashreplace").decode()[:NAME_LENGTH]


async def _problem(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reason = WHY.get(error.status_code, HTTPStatus(error.status_code).description or str(error.detail))
    return JSONResponse(problem_document(error.status_code, reason), error.status_code, error.headers)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(map(str, own['loc']))}: {own['msg']}" for own in error.errors()[:5]]
    return JSONResponse(problem_document(422, "; ".join(found)[:1000]), 422)
