"""Backend of the labelling page: one session, its training and the trial of its model, as JSON documents."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeAlias, final

from headstart.errors import DataError, HeadstartError, LabelError, StaleAction
from headstart.files import last_part, unicode_text, user_path
from headstart.labelling.session import LabellingSession
from headstart.serve.errors import HttpError, errors_as_http
from headstart.serve.labelling.training_process import TrainingProcess, session_name
from headstart.serve.labelling.trial import Trial
from headstart.serve.watch.run_reader import RunReader

SIZES: Final = (96, 160, 256, 512, 1024)
"""Sizes of thumbnails in pixels, so that each image is cached in few sizes."""

MAX_PAGE: Final = 1_000
"""Maximum number of items of one response."""

MAX_IMAGES: Final = 1 << 40

MAX_UPLOAD_NAME: Final = 60
"""Maximum number of characters of a stored file's name; a character takes up to 4 bytes, a name up to 255."""

_JSON = "json", "application/json"
DOWNLOADS: Final = {"csv": ("csv", "text/csv"), "coco": _JSON, "label-studio": _JSON}
"""Kind of an export -> suffix and media type of the file."""

JsonObject: TypeAlias = dict[str, Any]


@final
class LabellingBackend:
    """Responses to the requests of the labelling page.

    Args:
        session: the labelling session.
        options: options of ``headstart train`` for the button of the page.
        device: device of the trained model, see ``device.resolve_device``.
    """

    def __init__(self, session: LabellingSession, options: Sequence[str] = (), device: str = "auto") -> None:
        self.session = session
        self.labels_file = labels_file = session.files.table
        self.training = TrainingProcess(labels_file, options)
        self.trial = Trial(labels_file.with_name(f"{session_name(labels_file)}-corrections"), device)

    def check_token(self, token: object) -> None:
        """Refuses a page of an earlier process, whose image ids may have another meaning.

        Raises:
            HttpError: the token is not that of this session (409).
        """
        if token != self.session.token:
            raise HttpError(HTTPStatus.CONFLICT, "The server was started again. Reload the page.")

    def state(self) -> JsonObject:
        """State document of the page."""
        return self.session.state() | {"training": self._training_state()}

    def _training_state(self) -> JsonObject:
        state = self.training.state()
        if state["run"] is not None:
            state["run"] = unicode_text(state["run"])
            state["serve"] = f"headstart serve {shlex.quote(state['run'])}"
        return state

    def reader(self) -> RunReader:
        """Reader of the last run.

        Raises:
            HttpError: there is none (404).
        """
        if self.training.reader is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "No model has been trained in this session yet.")
        return self.training.reader

    def ids(self, view: str) -> JsonObject:
        """Numbers of all images of a view."""
        shown = self.session.images(view, 0, MAX_IMAGES)
        return {"revision": shown["revision"], "ids": [item["id"] for item in shown["items"]]}

    def thumbnail(self, image: int, size: int) -> bytes:
        """JPEG of an image whose longer side is the next of ``SIZES``."""
        with session_errors_as_http():
            return self.session.thumbnail(image, next((s for s in SIZES if s >= size), SIZES[-1]))

    def act(self, action: object) -> JsonObject:
        """Carries out one action.

        Raises:
            HttpError: the action is not valid (422), or refers to what has changed (409).
        """
        if not isinstance(action, dict):
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "An action is a JSON object.")
        with session_errors_as_http():
            return self.session.act(action)

    def train(self) -> JsonObject:
        """Starts a training on the labels table."""
        with session_errors_as_http():
            self.training.start()
        return self._training_state()

    def _finished_run(self) -> Path | None:
        """Folder of the last run, if it has finished."""
        reader = self.training.reader
        return reader.folder if reader is not None and (reader.folder / "run.json").is_file() else None

    def mistakes(self, count: int) -> JsonObject:
        """Labels for a second look, those that the last trained model contradicts first."""
        return self.session.mistakes(count, self._finished_run())

    def try_image(self, data: bytes, name: str) -> JsonObject:
        """Prediction of the last trained model for an image."""
        with session_errors_as_http():
            return self.trial.predict(self._finished_run(), data, name)

    def correct(self, data: bytes, label: str) -> JsonObject:
        """Adds an image that the model classified wrongly to the session, with its correct label."""
        with session_errors_as_http():
            image = self.session.find_image(data)
            if image is not None:
                action = {"do": "label", "images": [image], "label": label, "source": "second look"}
                return self.session.act(action) | {"id": image}
            kept = self.trial.keep(data, label)
            return self.session.add_file(kept.file, kept.label, "second look")

    def export_file(self, kind: str) -> tuple[bytes, str, str]:
        """Content, media type and name of an exported file."""
        if kind not in DOWNLOADS:
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"kind: one of {', '.join(DOWNLOADS)}.")
        suffix, media_type = DOWNLOADS[kind]
        name = f"{session_name(self.labels_file)}-{kind}.{suffix}"
        with tempfile.TemporaryDirectory() as folder, session_errors_as_http():
            out = Path(folder) / name
            self.session.export(kind, out)
            return out.read_bytes(), media_type, name

    def export_folders(self, out: str, how: str) -> JsonObject:
        """Writes one folder of images per class."""
        if not out.strip():
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "Name the folder to write.")
        with session_errors_as_http():
            return self.session.export("folders", self.labels_file.parent / user_path(out), how=how)

    def import_file(self, data: bytes, name: str, kind: str) -> JsonObject:
        """Reads labels from an uploaded file."""
        with tempfile.TemporaryDirectory() as folder, session_errors_as_http():
            file = Path(folder) / _upload_name(name)
            file.write_bytes(data)
            try:
                return self.session.load_labels(file, kind)
            except (DataError, LabelError) as error:  # the user knows the file by its name, not by where it is stored
                raise LabelError(str(error).replace(str(file), file.name)) from error

    def import_folder(self, path: str) -> JsonObject:
        """Reads labels from a folder with one folder of images per class."""
        with session_errors_as_http():
            return self.session.load_labels(user_path(path), "folders")

    def close(self) -> Path | None:
        """Stops a training in progress and closes the session; returns the folder of the stopped run."""
        stopped = self.training.stop()
        self.session.close()
        return stopped


def _upload_name(name: str) -> str:
    """The name that an uploaded file is stored under: its last part, without characters that no file name can have."""
    return "".join(filter(str.isprintable, last_part(name)))[-MAX_UPLOAD_NAME:].strip(". ") or "labels"


@contextlib.contextmanager
def session_errors_as_http() -> Iterator[None]:
    """Turns errors of a session into error responses; what refers to an earlier state of the labels is a conflict."""
    try:
        with errors_as_http():
            yield
    except StaleAction as error:
        raise HttpError(HTTPStatus.CONFLICT, str(error)) from error
    except HeadstartError as error:
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
