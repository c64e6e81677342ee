"""A Gradio Space of a model: a page that runs without Headstart, compared with the model before it is written."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from headstart.data.dataset import Dataset
from headstart.errors import ExportError, OutputError
from headstart.exports.destination import output_folder, whole_or_nothing
from headstart.exports.parity import MARGIN, MAX_OUTLIER_DIFFERENCE, MAX_PROBABILITY_DIFFERENCE
from headstart.exports.space import (
    APP_FILE,
    CARD_FILE,
    MODEL_FILE,
    REQUIREMENTS,
    REQUIREMENTS_FILE,
    SPACE_FILES,
    app_code,
    space_card,
)
from headstart.files import text_bytes, user_path
from headstart.hub import read_address
from headstart.model import Model, load
from headstart.prediction import INLIER_SHARE, Prediction
from headstart.progress import Progress, SilentProgress
from headstart.verbs.export import Exported, export
from headstart.verbs.export_images import Source


@dataclass(frozen=True)
class Space:
    """A written Space; result of ``space``.

    Attributes:
        folder: the folder.
        exported: the ONNX file in it, and its comparison with the model.
        images_of_app: images for which the answers of ``app.py`` were compared with the model's.
    """

    folder: Path
    exported: Exported
    images_of_app: int

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON document."""
        exported = {name: value for name, value in self.exported.as_json().items() if name != "snippets"}
        return {"space": str(self.folder), "images_of_app": self.images_of_app} | exported


def space(
    model: Source | Model,
    out: Source,
    *,
    data: Source | Dataset | None = None,
    title: str = "",
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Space:
    """Writes a Gradio Space: a folder with a page for the model that runs without Headstart.

    The folder has ``app.py``, ``requirements.txt``, ``README.md`` with the settings of a Space on the Hugging Face hub,
    and the model as an ONNX file, which is compared with the model as in ``export``. ``app.py`` is run in a separate
    process on images in several formats, and its answers are compared as well.

    Args:
        model: a run folder, a model file, ``hf://OWNER/NAME``, or a loaded model.
        out: the folder; a new or empty one, or one that this function wrote.
        data: see ``export``.
        title: of the page; the name of the data if "".
        device: device of the model: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        ExportError: ONNX cannot represent the model, or answers differ from the model's.
        DataError: there are no readable images to compare on.
        RunError: the model has no run folder and ``data`` is None.

    Examples:
        >>> from headstart.verbs import space
        >>> written = space("runs/flowers", "flowers-space")
        >>> sorted(file.name for file in written.folder.iterdir())
        ['README.md', 'app.py', 'model.onnx', 'requirements.txt']
    """
    progress = progress or SilentProgress()
    folder = _checked_folder(out)
    loaded = model if isinstance(model, Model) else load(model)
    title = " ".join((title or _title(model, loaded)).split())
    with whole_or_nothing(folder, is_folder=True) as partial:
        exported = export(
            model, "onnx", out=partial / MODEL_FILE, data=data, device=device, cache=cache, progress=progress
        )
        for name, text in {
            APP_FILE: app_code(title, exported.metadata),
            REQUIREMENTS_FILE: REQUIREMENTS,
            CARD_FILE: space_card(title, loaded),
        }.items():
            (partial / name).write_bytes(text_bytes(text))
        progress.say(f"Comparing the answers of {APP_FILE} with the model's, in a separate process.")
        images = _compare_app(partial / APP_FILE, loaded)
    return Space(folder, replace(exported, file=folder / MODEL_FILE), images)


def _checked_folder(out: Source) -> Path:
    folder = output_folder(out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; a Space is written as a folder. Name a new folder.")
    others = sorted({file.name for file in folder.iterdir()} - set(SPACE_FILES)) if folder.is_dir() else []
    if others:
        raise OutputError(f"{folder}: is not empty ({others[0]}), and not a Space of Headstart. Name a new folder.")
    return folder


def _title(model: Source | Model, loaded: Model) -> str:
    if isinstance(model, Model) or read_address(model):
        return f"Image classifier with {len(loaded.classes)} classes"
    run = user_path(model) / "run.json"
    if run.is_file():
        return str(json.loads(run.read_text(encoding="utf-8"))["data"]["name"])
    return user_path(model).stem


def _compare_app(app: Path, model: Model) -> int:
    """Runs the page's function on images in several formats; their number.

    Raises:
        ExportError: an answer differs from the model's.
    """
    with tempfile.TemporaryDirectory(prefix="headstart-") as scratch:
        paths = [str(path) for path in write_probe_images(Path(scratch))]
        done = subprocess.run(
            [sys.executable, "-I", str(app), *paths], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
            raise ExportError(f"{app.name}: cannot be run in a separate process ({said[-1]}).")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        expected = model.predict(paths, top=len(model.classes), device="cpu")
    for one, answer in zip(expected, answers, strict=True):
        _require_same(one, answer, model, app.name)
    return len(answers)


def _require_same(expected: Prediction, found: dict[str, Any], model: Model, name: str) -> None:
    differences = [abs(probability - found["probabilities"][label]) for label, probability in expected.top]
    if not max(differences) <= MAX_PROBABILITY_DIFFERENCE:
        raise ExportError(
            f"{name}: not written: for {Path(expected.path).name} its probabilities differ by {max(differences):.1e} "
            "from the model's."
        )
    answer = expected.answer or ", ".join(label for label, _ in expected.labels or ())
    if found["answer"] != answer and _is_clear(expected, model):
        raise ExportError(
            f"{name}: not written: for {Path(expected.path).name} it answers {found['answer']!r} instead of {answer!r}."
        )


def _is_clear(expected: Prediction, model: Model) -> bool:
    """Whether no number is so near to its limit that rounding changes the answer."""
    if expected.outlier is not None and abs(expected.outlier - INLIER_SHARE) <= MAX_OUTLIER_DIFFERENCE:
        return False
    scores = dict(expected.top)
    if model.thresholds is not None:
        limits = zip(model.classes, model.thresholds, strict=True)
        return all(abs(scores[label] - limit) > MARGIN for label, limit in limits)
    first, second = [*scores.values(), 0.0][:2]
    return first - second > MARGIN and abs(first - model.calibration.threshold) > MARGIN


def write_probe_images(folder: Path) -> Sequence[Path]:
    """Images in the formats and modes that are decoded in different ways; made of noise, in a folder that exists."""
    return [_saved(image, folder / name, exif) for name, image, exif in _probe_images()]


def _saved(image: Image.Image, path: Path, exif: Image.Exif) -> Path:
    image.save(path, exif=exif) if len(exif) else image.save(path)
    return path


def _probe_images() -> Iterable[tuple[str, Image.Image, Image.Exif]]:
    """Name, image and EXIF tags."""
    rng, upright, turned = np.random.default_rng(0), Image.Exif(), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    wide = small.resize((320, 190), Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (60, 75, 3), dtype=np.uint8))
    large = fine.resize((1500, 1200), Image.Resampling.NEAREST)  # edges, on which reduced decoding has an effect
    transparent = wide.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(wide.size))
    yield "wide.png", wide, upright
    yield "large.jpg", large, upright
    yield "turned.jpg", wide, turned
    yield "transparent.png", transparent, upright
    yield "grey.png", wide.convert("L"), upright
    yield "palette.gif", wide.convert("P"), upright
    yield "cmyk.jpg", wide.convert("CMYK"), upright
