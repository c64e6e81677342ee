"""The page at ``/``, and what it asks of the server beyond the API: heat maps, similar images, corrections."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any, final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

from headstart.data.decode import decode, jpeg_bytes, thumbnail
from headstart.engine.interface import Pixels
from headstart.errors import OptionError, OutputError, UnreadableImage
from headstart.evaluation.metrics import SHOWN_FIRST
from headstart.files import unicode_text
from headstart.reports.gradcam import GradCam, heat_map_jpeg
from headstart.serve.batching import Service, Work
from headstart.serve.corrections import Correction, Corrections, corrections_folder
from headstart.serve.errors import Refusal
from headstart.serve.middleware import unless_gone
from headstart.serve.multipart import read_form
from headstart.serve.neighbours import Neighbours
from headstart.serve.static_files import asset

NEAREST = 3
SIDE = 240
"""Of small pictures, in pixels."""

LISTED = 60
"""Corrections that the page shows."""

Document = dict[str, Any]


def page_router(service: Service, corrections: Corrections | None = None) -> APIRouter:
    """The routes of the page.

    Args:
        service: what answers.
        corrections: where they are kept; None where nothing can be corrected.
    """
    router = APIRouter(include_in_schema=False)
    page = Page(service, corrections)

    @router.get("/")
    async def index() -> Response:
        return asset("index.html")

    @router.get("/v1/page")
    async def about() -> Document:
        return page.about()

    @router.post("/v1/explain")
    async def explain(request: Request) -> Response:
        form = await read_form(request)
        (file,), label = form.files("file", most=1), form.text("label")
        decode, work = partial(page.pixels, file.data), partial(page.explain, label)
        heat = await unless_gone(request, service.aside(Work.explain, decode, work))
        return Response(heat, media_type="image/jpeg")

    @router.post("/v1/nearest")
    async def nearest(request: Request) -> JSONResponse:
        (file,) = (await read_form(request)).files("file", most=1)
        work = service.aside(Work.nearest, partial(page.pixels, file.data), page.nearest)
        return JSONResponse(await unless_gone(request, work))

    @router.get("/v1/corrections")
    async def listed() -> Document:
        return await run_in_threadpool(page.corrected)

    @router.post("/v1/corrections")
    async def keep(request: Request) -> JSONResponse:
        form = await read_form(request)
        (file,), label = form.files("file", most=1), form.text("label")
        work = service.decode(Work.correct, partial(page.keep, file.data, label))
        return JSONResponse(await work)  # what has begun is kept, whoever still waits for it

    @router.get("/v1/corrections/{key}")
    async def small(request: Request, key: str) -> Response:
        data = await unless_gone(request, service.decode(Work.correct, partial(page.small, key)))
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @router.delete("/v1/corrections/{key}")
    async def remove(key: str) -> Response:
        if not await run_in_threadpool(page.remove, key):
            raise Refusal(HTTPStatus.NOT_FOUND, "That correction is not there any more.")
        return JSONResponse({"removed": key})

    return router


@final
class Page:
    """What the page is told, as JSON documents; see ``page_router``."""

    def __init__(self, service: Service, corrections: Corrections | None) -> None:
        self.service, self.model, self._corrections = service, service.model, corrections
        self._cam: GradCam | None = None
        """Made with the first heat map, and used in the engine's thread alone."""

    def about(self) -> Document:
        """The model in a few words."""
        model = self.model
        several = model.thresholds is not None
        return {
            "name": self._name(),
            "words": self._words(),
            "classes": list(model.classes),
            "several_labels": several,
            "run": self.service.run is not None,
            "nearest": self._neighbours is not None,
            "corrections": self._corrections is not None and not several,
            "version": self._version,
            "architecture": model.net.backbone.architecture,
        }

    def pixels(self, data: bytes, max_decoded_pixels: int | None = None) -> Pixels:
        """A picture as the network sees it; ``max_decoded_pixels`` as for ``images.decode``, here and below.

        Raises:
            Refusal: it cannot be read.
        """
        seen = self.service.pixels(data, max_decoded_pixels)
        if isinstance(seen, str):
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The picture cannot be read: {seen}.")
        return seen

    def explain(self, label: str, pixels: Pixels, check: Callable[[], None] = lambda: None) -> bytes:
        """A JPEG of the image with what speaks for a class, warm (Grad-CAM); ``check`` as for ``Service.aside``.

        Raises:
            Refusal: the class is unknown, or the network keeps no places.
        """
        number = {name: i for i, name in enumerate(self.model.classes)}
        if label not in number:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The model knows no class {label[:100]!r}.")
        check()
        if self._cam is None:
            self._cam = GradCam(self.model, check=check)
        if not self._cam.possible:
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, "This network keeps no places: it cannot say where it looked."
            )
        (heat,) = self._cam.maps([pixels], [number[label]], check=check)
        check()
        return heat_map_jpeg(pixels, heat)

    def nearest(self, pixels: Pixels, check: Callable[[], None] = lambda: None) -> Document:
        """Training pictures that are most like this one; ``check`` as for ``Service.aside``.

        Raises:
            Refusal: no training pictures are known.
        """
        known = self._neighbours
        if known is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "The training pictures of this model are not known here.")
        check()
        found = known.nearest(pixels, NEAREST)
        check()
        shown = [
            {"label": o.label, "path": _plain(o.path), "similarity": o.similarity, "picture": thumbnail(o.path, SIDE)}
            for o in found
        ]
        return {"among": len(known.rows), "of": known.of, "nearest": shown}

    def corrected(self) -> Document:
        """What was corrected so far."""
        own = self._corrections
        if own is None:
            return {"folder": None, "count": 0, "labels": {}, "items": [], "train": None}
        found = own.all()
        labels = Counter(one.label for one in found)
        command = words = None
        run = self.service.run
        if found and run is not None:
            command = f"headstart retrain {shlex.quote(_plain(str(run)))}"
            if own.folder.resolve() != corrections_folder(run):
                command += f" --corrections {shlex.quote(_plain(str(own.folder)))}"
            words = (
                "With the run's own options. Its images keep their split, with their corrected labels; other images "
                "are for training. At the end it compares before and after on the same images."
            )
        elif len(labels) > 1:
            command = f"headstart train {shlex.quote(_plain(str(own.folder)))}"
            words = "On these alone. Copy the folder's classes to your own images to learn from both."
        return {
            "folder": _plain(str(own.folder)),
            "count": len(found),
            "labels": dict(labels),
            "items": [_document(one) for one in found[:LISTED]],
            "train": command,
            "train_words": words,
        }

    def keep(self, data: bytes, label: str, max_decoded_pixels: int | None = None) -> Document:
        """Keeps a picture under its right label.

        Raises:
            Refusal: it cannot be kept.
        """
        with _refusals():
            kept = self._kept().keep(
                data, label, max_pixels=self.service.limits.pixels, max_decoded_pixels=max_decoded_pixels
            )
        return _document(kept)

    def remove(self, key: str) -> bool:
        """Takes a correction back; False where there is none.

        Raises:
            Refusal: it cannot be.
        """
        with _refusals():
            return self._kept().remove(key)

    def small(self, key: str, max_decoded_pixels: int | None = None) -> bytes:
        """A small JPEG of a corrected picture.

        Raises:
            Refusal: there is none.
        """
        found = self._kept().find(key)
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "That correction is not there any more.")
        with _refusals():
            image = decode(
                found.file,
                min_side=SIDE,
                value_range=self.model.preprocessing.value_range,
                max_pixels=self.service.limits.pixels,
                max_decoded_pixels=max_decoded_pixels,
            ).image
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return jpeg_bytes(image, quality=82)

    def _kept(self) -> Corrections:
        if self._corrections is None or self.model.thresholds is not None:
            raise Refusal(HTTPStatus.NOT_FOUND, "This server keeps no corrections of this model.")
        return self._corrections

    def _name(self) -> str:
        """As the page of the run has it; of a model file without its run, the data's name."""
        run = self.service.run
        if run is not None:
            return _plain(run.resolve().name)
        return str(self.model.data.get("name") or "A classifier")

    def _words(self) -> str:
        """What it tells apart and how well."""
        model = self.model
        several = model.thresholds is not None
        words = f"Tells {len(model.classes):,} {'labels' if several else 'classes'} apart."
        name = next((name for name in SHOWN_FIRST if name in model.scores), None)
        if name is not None:
            scored = model.scores[name]
            share = 100 * scored["correct"] / max(1, scored["count"])
            low, high = 100 * scored["low"], 100 * scored["high"]
            words += (
                f" Right on {scored['correct']:,} of {scored['count']:,} {name} pictures: {share:.1f} % "
                f"({low:.1f}-{high:.1f})."
            )
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


@contextlib.contextmanager
def _refusals() -> Any:
    try:
        yield
    except UnreadableImage as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The picture cannot be read: {error.reason}.") from error
    except OptionError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except OutputError as error:
        raise Refusal(HTTPStatus.INSUFFICIENT_STORAGE, str(error)) from error


def _document(own: Correction) -> Document:
    return {"key": own.key, "label": own.label, "file": _plain(str(own.file)), "time": own.time}


def _plain(text: str) -> str:
    """A path as it can stand in JSON."""
    return unicode_text(text)
