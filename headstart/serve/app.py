"""The application: HTTP API of a model, with health checks, the page and the view of its run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from headstart.extras import version_of
from headstart.serve.access import AccessPolicy
from headstart.serve.batching import InferenceService
from headstart.serve.corrections import Corrections
from headstart.serve.errors import ERROR_DESCRIPTIONS, HttpError, error_document
from headstart.serve.middleware import RequestMiddleware, cancel_on_disconnect
from headstart.serve.multipart import FormPart, read_form
from headstart.serve.page import page_router
from headstart.serve.request_log import write_json_line
from headstart.serve.responses import printable_name
from headstart.serve.schemas import ErrorResponse, ModelInfo, PredictResponse, image_prediction, model_info
from headstart.serve.static_files import SecurityHeadersMiddleware, asset_router
from headstart.serve.watch.run_reader import RunReader
from headstart.serve.watch.views import watch_router

Log = Callable[[dict[str, Any]], None]


class Liveness(BaseModel):
    """The process is alive."""

    alive: bool = True


class Readiness(BaseModel):
    """The server accepts requests."""

    ready: bool = True


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses of a route, for the OpenAPI description."""
    return {status: {"model": ErrorResponse, "description": ERROR_DESCRIPTIONS[status]} for status in statuses}


def build_app(
    service: InferenceService,
    *,
    admission: AccessPolicy | None = None,
    corrections: Corrections | None = None,
    log: Log | None = write_json_line,
) -> FastAPI:
    """Builds the ASGI application.

    Args:
        service: the model; it is started and closed with the application.
        admission: which requests are accepted.
        corrections: where the page stores corrected images; None to disable corrections.
        log: called with one entry per request; None for no log.
    """
    admission = admission or AccessPolicy()
    app = FastAPI(
        title="Headstart",
        version=version_of("headstart"),
        description=f"An image classifier with {len(service.model.classes):,} classes.",
        lifespan=_lifespan_of(service),
        docs_url=None,  # FastAPI's pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a redirect would be built from the Host header
    )
    app.state.service = service
    api = api_router(service)
    routers = [api, health_router(service), page_router(service, corrections), asset_router()]
    if service.run is not None:
        reader = RunReader(service.run, served=True)
        routers.append(watch_router(lambda: reader, is_stopping=lambda: service.state.draining))
    # ``RequestMiddleware`` checks the key; the dependency only adds it to the OpenAPI description.
    key_scheme = [Security(HTTPBearer(auto_error=False))] if admission.key else []
    for router in routers:
        app.include_router(router, dependencies=key_scheme if router is api else [])
    add_error_handlers(app)
    app.add_middleware(
        RequestMiddleware,
        limits=service.limits,
        admission=admission,
        state=service.state,
        metrics=service.metrics,
        name_path=path_namer([*app.routes, *(route for router in routers for route in router.routes)]),
        log=log,
    )
    app.add_middleware(SecurityHeadersMiddleware)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Gives errors of the framework the format of ``ErrorResponse``."""
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


def _lifespan_of(service: InferenceService) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    return lifespan


def api_router(service: InferenceService) -> APIRouter:
    """Routes of the API for programs."""
    router = APIRouter()

    @router.post(
        "/v1/predict",
        responses=error_responses(400, 401, 403, 408, 413, 422, 503, 504),
        openapi_extra=_predict_body(service.limits.max_images),
        tags=["model"],
    )
    async def predict(
        request: Request,
        top: Annotated[int | None, Query(ge=1, le=1_000_000, description="Number of classes; default: all.")] = None,
    ) -> PredictResponse:
        """Classifies images. The entry of an image that cannot be read contains an error; the others are classified."""
        parts = (await read_form(request)).files("files", max_count=service.limits.max_images)
        predictions = await cancel_on_disconnect(request, service.predict(named_images(parts)))
        request.state.images = len(predictions)
        request.state.unreadable = sum(prediction.label is None for prediction in predictions)
        return PredictResponse(
            version=service.model.version,
            predictions=[image_prediction(prediction, top=top) for prediction in predictions],
        )

    @router.get("/v1/model", responses=error_responses(401, 403, 503), tags=["model"])
    async def model() -> ModelInfo:
        """Classes, preprocessing, calibration and scores of the model."""
        return model_info(service.model, engine=None if service.engine is None else service.engine.name)

    @router.get(
        "/metrics",
        responses=error_responses(401, 403, 503) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
        tags=["operation"],
    )
    async def metrics() -> Response:
        """Metrics in Prometheus format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _predict_body(max_images: int) -> dict[str, Any]:
    """OpenAPI description of the form, which the route parses itself."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": max_images,
        "description": "The images: JPEG, PNG, WebP, GIF, ...",
    }
    form = {"schema": {"type": "object", "required": ["files"], "properties": {"files": files}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}


def health_router(service: InferenceService) -> APIRouter:
    """Health checks, which need no API key."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", responses=error_responses(403))
    async def healthz() -> Liveness:
        """Liveness: the process responds."""
        return Liveness()

    @router.get("/readyz", responses=error_responses(403, 503))
    async def readyz() -> Readiness:
        """Readiness: the model is warmed up and new requests are accepted."""
        service.start()  # does nothing unless the application is mounted, where no lifespan has run
        if not service.ready:
            raise HttpError(503, "The model is not warmed up yet, or the server is about to stop.", retry_after=1)
        return Readiness()

    return router


def path_namer(routes: Sequence[BaseRoute]) -> Callable[[str], str]:
    """A function that maps the path of a request to the path of its route; "other" if there is none."""
    patterns = {route.path: route.path_regex for route in routes if isinstance(route, Route)}

    def name(path: str) -> str:
        return next((route for route, pattern in patterns.items() if pattern.match(path)), "other")

    return name


def named_images(parts: Sequence[FormPart]) -> list[tuple[str, bytes]]:
    """Names and contents of uploaded files."""
    return [(printable_name(part.filename), part.data) for part in parts]


async def _framework_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reason = ERROR_DESCRIPTIONS.get(error.status_code, HTTPStatus(error.status_code).description or str(error.detail))
    return JSONResponse(error_document(error.status_code, reason), error.status_code, error.headers)


async def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()[:5]]
    return JSONResponse(error_document(422, "; ".join(found)[:1000]), 422)
