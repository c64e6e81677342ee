"""Backend of the page at ``/``: model description, heat maps, similar images and corrections."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeAlias, final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

from headstart.data.decode import decode, jpeg_bytes, thumbnail
from headstart.engine.interface import Pixels
from headstart.errors import OptionError
from headstart.evaluation.metrics import SHOWN_FIRST
from headstart.figures import share_text
from headstart.files import unicode_text
from headstart.reports.gradcam import GradCam, heat_map_jpeg, heat_map_overlay
from headstart.serve.batching import InferenceService, TaskKind
from headstart.serve.corrections import Correction, Corrections, corrections_folder
from headstart.serve.errors import HttpError, errors_as_http
from headstart.serve.middleware import cancel_on_disconnect
from headstart.serve.multipart import read_form
from headstart.serve.neighbours import Neighbours
from headstart.serve.static_files import asset

NUM_NEIGHBOURS: Final = 3
THUMBNAIL_SIZE: Final = 240
"""Longer side of a thumbnail, in pixels."""

MAX_LISTED: Final = 60
"""Maximum number of corrections shown on the page."""

JsonObject: TypeAlias = dict[str, Any]


def page_router(service: InferenceService, corrections: Corrections | None = None) -> APIRouter:
    """Routes of the page.

    Args:
        service: the model.
        corrections: where corrected images are stored; None to disable corrections.
    """
    router = APIRouter(include_in_schema=False)
    page = PageBackend(service, corrections)

    @router.get("/")
    async def index() -> Response:
        return asset("index.html")

    @router.get("/v1/page")
    async def describe() -> JsonObject:
        return page.describe()

    @router.post("/v1/explain")
    async def explain(request: Request) -> Response:
        form = await read_form(request)
        (file,), label = form.files("file", max_count=1), form.text("label")
        work = service.run_side_task(TaskKind.explain, partial(page.pixels, file.data), partial(page.explain, label))
        return Response(await cancel_on_disconnect(request, work), media_type="image/jpeg")

    @router.post("/v1/nearest")
    async def nearest(request: Request) -> JSONResponse:
        (file,) = (await read_form(request)).files("file", max_count=1)
        work = service.run_side_task(TaskKind.nearest, partial(page.pixels, file.data), page.nearest)
        return JSONResponse(await cancel_on_disconnect(request, work))

    _add_correction_routes(router, service, page)
    return router


def _add_correction_routes(router: APIRouter, service: InferenceService, page: PageBackend) -> None:
    @router.get("/v1/corrections")
    async def listed() -> JsonObject:
        return await run_in_threadpool(page.list_corrections)

    @router.post("/v1/corrections")
    async def keep(request: Request) -> JSONResponse:
        form = await read_form(request)
        (file,), label = form.files("file", max_count=1), form.text("label")
        # Not cancelled on disconnect: a correction that has begun is stored.
        return JSONResponse(await service.run_decode(TaskKind.correct, partial(page.keep, file.data, label)))

    @router.get("/v1/corrections/{key}")
    async def small(request: Request, key: str) -> Response:
        work = service.run_decode(TaskKind.correct, partial(page.correction_thumbnail, key))
        data = await cancel_on_disconnect(request, work)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @router.delete("/v1/corrections/{key}")
    async def remove(key: str) -> Response:
        if not await run_in_threadpool(page.remove, key):
            raise HttpError(HTTPStatus.NOT_FOUND, "This correction no longer exists.")
        return JSONResponse({"removed": key})


@final
class PageBackend:
    """Responses to the requests of the page, as JSON documents and JPEG bytes; see ``page_router``."""

    def __init__(self, service: InferenceService, corrections: Corrections | None) -> None:
        self.service, self.model, self._corrections = service, service.model, corrections
        self._cam: GradCam | None = None
        """Created with the first heat map; used on the engine thread only."""

    def describe(self) -> JsonObject:
        """Name, description and supported functions of the model."""
        model = self.model
        multi_label = model.thresholds is not None
        return {
            "name": self._name(),
            "words": self._description(),
            "classes": list(model.classes),
            "multi_label": multi_label,
            "run": self.service.run is not None,
            "nearest": self._neighbours is not None,
            "corrections": self._corrections is not None and not multi_label,
            "version": self._version,
            "architecture": model.net.backbone.architecture,
        }

    def pixels(self, data: bytes, max_decoded_pixels: int | None = None) -> Pixels:
        """Network input of an encoded image. ``max_decoded_pixels``, here and below: see ``decode.decode``.

        Raises:
            HttpError: the image cannot be read.
        """
        pixels = self.service.pixels(data, max_decoded_pixels)
        if isinstance(pixels, str):
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"The image cannot be read: {pixels}.")
        return pixels

    def explain(self, label: str, pixels: Pixels, checkpoint: Callable[[], None] = lambda: None) -> bytes:
        """JPEG of the image with a Grad-CAM heat map for a class. ``checkpoint``: see ``run_side_task``.

        Raises:
            HttpError: the class is unknown, or the backbone has no spatial features.
        """
        index_of = {name: i for i, name in enumerate(self.model.classes)}
        if label not in index_of:
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"The model has no class {label[:100]!r}.")
        checkpoint()
        if self._cam is None:
            self._cam = GradCam(self.model, check=checkpoint)
        if not self._cam.possible:
            raise HttpError(
                HTTPStatus.UNPROCESSABLE_ENTITY, "No heat map: this backbone has no spatial features for Grad-CAM."
            )
        (heat,) = self._cam.maps([pixels], [index_of[label]], check=checkpoint)
        checkpoint()
        return heat_map_jpeg(heat_map_overlay(pixels, heat))

    def nearest(self, pixels: Pixels, checkpoint: Callable[[], None] = lambda: None) -> JsonObject:
        """Most similar training images. ``checkpoint``: see ``run_side_task``.

        Raises:
            HttpError: the model has no reference images.
        """
        neighbours = self._neighbours
        if neighbours is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "The training images of this model are not available here.")
        checkpoint()
        found = neighbours.nearest(pixels, NUM_NEIGHBOURS)
        checkpoint()
        shown = [
            {
                "label": neighbour.label,
                "path": unicode_text(neighbour.path),
                "similarity": neighbour.similarity,
                "image": thumbnail(neighbour.path, THUMBNAIL_SIZE),
            }
            for neighbour in found
        ]
        return {"among": len(neighbours.rows), "of": neighbours.num_training_images, "nearest": shown}

    def list_corrections(self) -> JsonObject:
        """All corrections, and the command that trains with them."""
        if self._corrections is None:
            return {"folder": None, "count": 0, "labels": {}, "items": [], "train": None}
        found = self._corrections.all()
        labels = Counter(correction.label for correction in found)
        command, explanation = self._training_command(self._corrections.folder, num_labels=len(labels))
        return {
            "folder": unicode_text(str(self._corrections.folder)),
            "count": len(found),
            "labels": dict(labels),
            "items": [_correction_document(correction) for correction in found[:MAX_LISTED]],
            "train": command,
            "train_words": explanation,
        }

    def _training_command(self, folder: Path, *, num_labels: int) -> tuple[str | None, str | None]:
        """Command that trains with the corrections, and its explanation; None if there are too few."""
        run = self.service.run
        if num_labels and run is not None:
            command = f"headstart retrain {shlex.quote(unicode_text(str(run)))}"
            if folder.resolve() != corrections_folder(run):
                command += f" --corrections {shlex.quote(unicode_text(str(folder)))}"
            return command, (
                "Uses the options of the run. Its images keep their split, with their corrected labels; other images "
                "are added to train. At the end the model before and the model after are compared on the same images."
            )
        if num_labels > 1:
            command = f"headstart train {shlex.quote(unicode_text(str(folder)))}"
            return command, (
                "Trains on the corrected images only. To train on your data as well, copy these class folders into "
                "the folder of your data."
            )
        return None, None

    def keep(self, data: bytes, label: str, max_decoded_pixels: int | None = None) -> JsonObject:
        """Stores an image under its correct label.

        Raises:
            HttpError: the image cannot be stored.
        """
        with errors_as_http():
            stored = self._enabled_corrections().keep(
                data, label, max_pixels=self.service.limits.max_pixels, max_decoded_pixels=max_decoded_pixels
            )
        return _correction_document(stored)

    def remove(self, key: str) -> bool:
        """Deletes a correction; False if there is none.

        Raises:
            HttpError: the image cannot be deleted.
        """
        with errors_as_http():
            return self._enabled_corrections().remove(key)

    def correction_thumbnail(self, key: str, max_decoded_pixels: int | None = None) -> bytes:
        """JPEG thumbnail of a corrected image.

        Raises:
            HttpError: there is no such correction.
        """
        found = self._enabled_corrections().find(key)
        if found is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "This correction no longer exists.")
        with errors_as_http():
            image = decode(
                found.file,
                min_side=THUMBNAIL_SIZE,
                value_range=self.model.preprocessing.value_range,
                max_pixels=self.service.limits.max_pixels,
                max_decoded_pixels=max_decoded_pixels,
            ).image
        image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
        return jpeg_bytes(image, quality=82)

    def _enabled_corrections(self) -> Corrections:
        if self._corrections is None or self.model.thresholds is not None:
            raise HttpError(HTTPStatus.NOT_FOUND, "This server stores no corrections for this model.")
        return self._corrections

    def _name(self) -> str:
        """Name of the run, as in the view of the run; for a model file without its run, the name of the data."""
        run = self.service.run
        if run is not None:
            return unicode_text(run.resolve().name)
        return str(self.model.data.get("name") or "Image classifier")

    def _description(self) -> str:
        """Number of classes, accuracy with its interval, and why there is no calibration if there is none."""
        model = self.model
        words = f"{len(model.classes):,} {'classes' if model.thresholds is None else 'labels'}."
        name = next((name for name in SHOWN_FIRST if name in model.scores), None)
        if name is not None:
            words += f" {name.capitalize()} {_accuracy_in_words(model.scores[name])}."
        return words if model.calibration.images else f"{words} {model.calibration_text}"

    @cached_property
    def _version(self) -> str:
        return self.model.version

    @cached_property
    def _neighbours(self) -> Neighbours | None:
        if self.service.run is None:
            return None
        with contextlib.suppress(OptionError):
            return Neighbours(self.model, self.service.run)
        return None


def _accuracy_in_words(scores: dict[str, Any]) -> str:
    return f"accuracy {share_text(scores['correct'], scores['count'], scores['low'], scores['high'])}"


def _correction_document(correction: Correction) -> JsonObject:
    return {
        "key": correction.key,
        "label": correction.label,
        "file": unicode_text(str(correction.file)),
        "time": correction.time,
    }
