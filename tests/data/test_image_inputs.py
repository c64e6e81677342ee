"""Whatever has a plain meaning as an image is predicted as its file is; anything else is one error."""

from __future__ import annotations

import array as buffers
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image
from random_images import random_image, write_classes
from small_models import small_model

import headstart as hs
from headstart.data import image_inputs
from headstart.data.image_inputs import read_source, read_sources
from headstart.data.image_source import ImageSource
from headstart.data.rgb import as_rgb
from headstart.errors import DataError, OptionError
from headstart.model import Model
from headstart.prediction import Prediction
from headstart.runtime.local_images import read_local


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model(image_size=32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "a.png"
    random_image(3).save(path)
    return path


class AsyncUpload:
    """As Starlette has it: ``read`` is a coroutine, ``file`` is the file itself."""

    filename = "upload.png"

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    async def read(self) -> bytes:
        return self.file.read()


class Response:
    """As ``requests`` has it: iterating gives pieces of the body."""

    url = "https://example.org/a.png"

    def __init__(self, content: bytes) -> None:
        self.content = content

    def iter_content(self, size: int = 128) -> Iterator[bytes]:
        yield from (self.content[start : start + size] for start in range(0, len(self.content), size))

    __iter__ = iter_content


class OnlyRead:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self) -> bytes:
        return self.data


def in_memory(file: Path) -> Iterator[tuple[str, Any]]:
    """Name of a form -> the same image in it."""
    data, image = file.read_bytes(), Image.open(file).convert("RGB")
    array = np.asarray(image)
    at_end = io.BytesIO()
    image.save(at_end, "PNG")
    chw = torch.from_numpy(array.copy()).permute(2, 0, 1)
    yield from {
        "str": str(file),
        "path": file,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "BytesIO at its end": at_end,
        "upload": AsyncUpload(data),
        "reader": OnlyRead(data),
        "Pillow": image,
        "uint8": array,
        "RGBA": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "not contiguous": np.ascontiguousarray(array[::-1])[::-1],
        "uint16": array.astype(np.uint16) * 257,
        "uint16 of the other byte order": (array.astype(np.uint16) * 257).astype(">u2"),
        "float32 of the other byte order": (array / 255).astype(">f4"),
        "buffer": buffers.array("B", data),
        "pyarrow buffer": pyarrow.py_buffer(data),
        "response": Response(data),
        "float64": array / 255,
        "float32": (array / 255).astype(np.float32),
        "float16": (array / 255).astype(np.float16),
        "tensor CHW": chw,
        "tensor HWC": torch.from_numpy(array.copy()),
        "tensor of floats": (chw / 255).requires_grad_(),
    }.items()


def test_one_image_in_any_form_gives_the_prediction_of_its_file(model: Model, file: Path) -> None:
    expected = model.predict(file)
    for form, image in in_memory(file):
        answer = model.predict(image)
        assert isinstance(answer, Prediction), form
        assert answer.top == expected.top, form
    with open(file, "rb") as opened, tempfile.TemporaryFile() as unnamed:
        unnamed.write(file.read_bytes())
        answers = model.predict([opened, unnamed, opened])
    assert [a.top for a in answers] == [a.top for a in model.predict([file] * 3)]
    assert [a.path for a in answers] == [str(file), "<file>", str(file)]


def test_several_images_in_any_form_give_a_list(model: Model, file: Path, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", {"a": 3, "b": 2})
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    expected = [p.top for p in model.predict(paths)]
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    series = pandas.Series(paths, index=range(7, 12))
    forms: dict[str, Any] = {
        "tuple": tuple(paths),
        "generator": (path for path in paths),
        "array of paths": np.array(paths),
        "folder": folder,
        "folder in a list": [str(folder)],
        "data set": hs.open_data(folder),
        "pandas": pandas.DataFrame({"label": 0, "Path": series}),
        "series": series,
        "pyarrow": pyarrow.table({"file": paths, "label": range(5)}),
        "chunked": pyarrow.chunked_array([paths]),
        "batch": arrays,
        "tensor": torch.from_numpy(arrays).permute(0, 3, 1, 2),
        "mixed": [paths[0], Path(paths[1]), Path(paths[2]).read_bytes(), arrays[3], Image.open(paths[4])],
    }
    for form, images in forms.items():
        answers = model.predict(images)
        assert [answer.top for answer in answers] == expected, form
    assert model.predict([]) == []
    probabilities, faults = model.predict_proba(folder)
    assert probabilities.shape == (5, 3)
    assert not faults
    assert model.predict_with_outliers(file)[0].shape == (1, 3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "NoneType is not an image. Accepted: a path or URL; a file's bytes"),
        (3, "int is not an image"),
        ({"path": "a.png"}, "dict is not an image"),
        ([{"a": 1}], "image 0: dict is not an image"),
        ([["a.png"]], "image 0: list is not an image"),
        ([b"", None], "image 1: NoneType is not an image"),
        (np.zeros((4, 4), np.int64), "int64 has no defined white"),
        (np.full((4, 4), 200.0), r"floats from 200 to 200: expected \[0, 1\]. Divide by"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.full((4, 4), -0.1), "floats from -0.1"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\) is not an image"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\) is not an image"),
        (np.zeros(5, np.uint8), r"shape \(5,\) is not an image"),
        (np.array([1 + 2j, 0]), "is not an image"),
        (torch.zeros(2, 5, 5), "is not an image"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64 has no defined white"),
        (torch.eye(4).to_sparse(), "is not an image"),
        (io.StringIO("text"), 'opened as text; open it with mode "rb"'),
        (pandas.DataFrame({"x": ["a.png"]}), "a table without a column of paths .*; it has x"),
        (pandas.DataFrame({"path": ["a.png", None]}), "image 1: (float|NoneType) is not an image"),
        (object(), "object is not an image"),
        (pandas.DataFrame([["a.png", "b.png"]], columns=["path", "Path"]), "a table with 2 columns named 'path'"),
        (buffers.array("H", [1, 2]), "image 0: int is not an image"),
        (np.uint8(3), "uint8 is not an image"),
        ("file://[", r"file://\[: not a valid URL"),
        ("\ud800.png", "not a path; it has a character that no path can have"),
    ],
)
def test_what_is_no_image_is_one_error_that_says_what_is(model: Model, image: object, words: str) -> None:
    for ask in (model.predict, model.predict_proba, model.predict_with_outliers):
        with pytest.raises(OptionError, match=words):
            ask(image)


def test_a_closed_file_is_an_error_and_a_damaged_image_has_a_row(model: Model, file: Path) -> None:
    with open(file, "rb") as closed:
        pass
    with pytest.raises(OptionError, match=r"a\.png: cannot be read"):
        model.predict(closed)
    lazy = Image.open(io.BytesIO(file.read_bytes()[:-300]))
    answers = model.predict([lazy, file])
    assert answers[0].error
    assert answers[1].error is None


def test_an_image_opened_as_text_is_an_error_that_says_how_to_open_it(model: Model, file: Path) -> None:
    with file.open(encoding="utf-8") as text, pytest.raises(OptionError, match="opened as text"):
        model.predict(text)


def test_a_single_path_that_does_not_exist_raises_and_in_a_list_its_row_says_so(model: Model, file: Path) -> None:
    for missing in ("gone.png", Path("gone.png")):
        with pytest.raises(DataError, match=r"gone\.png: no such file or folder"):
            model.predict(missing)
    answers = model.predict(["gone.png", file])
    assert [a.error for a in answers] == ["no such file or directory", None]


@pytest.mark.parametrize("path", ["~nobody-here/a.jpg", "a\0b.jpg", "", "a\ud800.jpg"])
def test_a_path_that_no_file_can_have_is_an_error_of_its_row_in_a_list(model: Model, file: Path, path: str) -> None:
    with pytest.raises(OptionError):
        model.predict(path)
    answers = model.predict([path, file])
    assert answers[0].error in ("no such file or directory", "not a path that a file can have")
    assert answers[1].error is None
    assert read_local([path])[0][0].content == path
    with pytest.raises(OptionError):
        read_local(path)


def test_an_empty_folder_says_so(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in this folder"):
        model.predict(tmp_path)


@pytest.mark.parametrize("top", [0, -1, "3", 1.0, None, True])
def test_top_is_a_number_from_one_on(model: Model, file: Path, top: Any) -> None:
    with pytest.raises(OptionError, match=r"top .*: expected a whole number of at least 1"):
        model.predict(file, top=top)


def test_bool_is_black_and_white_and_floats_keep_sixteen_bits() -> None:
    mask = np.array([[True, False]])
    assert np.asarray(as_rgb(read_source(mask).content))[0, :, 0].tolist() == [255, 0]  # type: ignore[arg-type]
    deep = read_source(np.array([[0.0, 0.5, 1.0]])).content
    assert isinstance(deep, np.ndarray)
    assert deep.tolist() == [[0, 32768, 65535]]
    assert np.asarray(as_rgb(deep, value_range=(0.0, 0.5)))[0, :, 0].tolist() == [0, 255, 255]
    assert read_sources(np.zeros((2, 2), np.uint8))[1]


def test_a_form_of_images_in_the_registry_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        frames = (b"one", b"two")

    monkeypatch.setattr(
        image_inputs, "COLLECTIONS", (lambda own: getattr(own, "frames", None), *image_inputs.COLLECTIONS)
    )
    read, is_single = read_sources(Camera())
    assert ([one.content for one in read], is_single) == ([b"one", b"two"], False)
    monkeypatch.setattr(
        image_inputs, "READERS", (lambda own, _: ImageSource("camera", own.frames[0]) if own is camera else None,)
    )
    camera = Camera()
    assert read_source(camera).content == b"one"
