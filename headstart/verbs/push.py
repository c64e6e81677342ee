"""Publishing the model of a run on the Hugging Face hub, also as a model of timm where it can be one."""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.backbone.licenses import require_accepted
from headstart.errors import DataError, ExportError, HubError, SourceError
from headstart.exports.formats import timm
from headstart.exports.timm_card import differences, usage
from headstart.files import text_bytes, user_path
from headstart.hub import check_repository
from headstart.hub import push as push_files
from headstart.model import Model, load
from headstart.model_file import HUB_MODEL_FILE, MODEL_FILE
from headstart.progress import Progress, SilentProgress
from headstart.reports.model_card import CARD_FILE, model_card
from headstart.runs.folder import REPORT_FILE, Run, load_run, read_selection
from headstart.verbs.export import export

Files = dict[str, Path | bytes]
"""Name in the repository -> a local file, or the content."""


def push(
    run: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    with_report: bool = False,
    with_timm: bool = True,
    accept_license: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> str:
    """Publishes the model of a finished run on the Hugging Face hub: model file, model card, recipe and scores.

    If timm can express the model, the repository is a model of timm too: ``config.json`` and ``model.safetensors`` are
    what ``export(run, "timm")`` writes, compared with the model on the run's images. No image is uploaded, except as
    thumbnails in the report if ``with_report``.

    Args:
        run: a run folder.
        repository: "OWNER/NAME"; created if it does not exist.
        private: whether a new repository is private.
        with_report: upload the HTML report as well.
        with_timm: upload the files for timm and transformers as well, where they are possible; a message says if not.
        accept_license: publish a model made from pretrained weights whose licence is restricted.
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of the comparison.

    Returns:
        URL of the repository.

    Raises:
        RunError: not a finished run.
        LicenseError: the licence of the pretrained weights is restricted, and ``accept_license`` is not given.
        HubError: not logged in, the hub refuses access, or a file contains a path of this machine.

    Examples:
        >>> url = hs.push("runs/flowers", "OWNER/NAME", private=True)
        >>> hs.load("hf://OWNER/NAME").classes
        ('roses', 'tulips')
    """
    check_repository(repository)
    folder = user_path(run)
    finished = load_run(folder)
    document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    model = load(folder)
    made_from = f"{run}: made from {model.net.backbone.architecture}"
    require_accepted(made_from, model.net.backbone.license, accepted=accept_license)
    with tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
        out = Path(scratch) / timm.NAME
        of_timm = _files_of_timm(folder, model, out, cache, progress or SilentProgress()) if with_timm else {}
        files = _files_of_run(finished, document, model, repository, for_timm=bool(of_timm)) | of_timm
        if with_report:
            files[REPORT_FILE] = folder / REPORT_FILE
        files = {name: content for name, content in files.items() if isinstance(content, bytes) or content.is_file()}
        private_paths = {str(Path.home()), str(folder.resolve()), document["data"].get("base", "")}
        _check_publishable(files, private_paths | set(finished.recipe.paths.values()))
        message = f"Headstart model of {document['data']['name']}"
        stale = [name for name in timm.NETWORK_FILES if name not in files]
        return push_files(repository, files, removed=stale, private=private, message=message)


def _files_of_run(
    finished: Run, document: Mapping[str, Any], model: Model, repository: str, *, for_timm: bool
) -> Files:
    """Card, model file, recipe and scores; ``for_timm``: whether the card says how timm loads the repository."""
    folder = finished.folder
    card = model_card(
        model,
        finished.results,
        document,
        repository,
        selection=read_selection(folder),
        other_programs=f"{usage(repository)}\n{differences(model)}" if for_timm else "",
    )
    return {
        CARD_FILE: text_bytes(card),
        HUB_MODEL_FILE: _model_file(folder, model),
        "recipe.json": json.dumps(finished.recipe.without_paths().as_json(), indent=1).encode(),
        "scores.json": folder / "scores.json",
    }


def _model_file(folder: Path, model: Model) -> Path | bytes:
    """The model file; written again if it is of an earlier version, which stored paths."""
    return folder / MODEL_FILE if model.recipe == model.recipe.without_paths() else model.as_bytes()


def _files_of_timm(folder: Path, model: Model, out: Path, cache: Path | None, progress: Progress) -> Files:
    """The files that make the repository a model of timm; none if that is not possible, which a message explains."""
    reason = timm.timm_obstacle(model)
    if not reason:
        try:
            export(folder, timm.NAME, out=out, cache=cache, progress=progress)
            return {name: out / name for name in timm.NETWORK_FILES}
        except (DataError, ExportError, SourceError) as error:
            reason = str(error).rstrip(".")
    progress.say(f"Published without the files for timm and transformers: {reason}.")
    return {}


def _check_publishable(files: Mapping[str, Path | bytes], paths: set[str]) -> None:
    """Checks that no file to publish contains a path of this machine (law 16).

    Raises:
        HubError: a file contains one.
    """
    for name, content in files.items():
        for path in (path for path in paths if os.path.isabs(path) and len(Path(path).parts) > 1):
            if any(
                _holds(content, words.encode()) for words in {f"{path}{os.sep}", json.dumps(f"{path}{os.sep}")[1:-1]}
            ):
                raise HubError(
                    f"{name}: contains a path of this machine ({path}), so it is not published. Write it again "
                    "(headstart report RUN), or train again with this version."
                )


def _holds(content: Path | bytes, words: bytes) -> bool:
    if isinstance(content, bytes):
        return words in content
    with open(content, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(words) >= 0
