"""Predictions of exported files: the answers and errors of the model, without PyTorch."""

from __future__ import annotations

import ast
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import main
from encoded_images import encoded, png
from exported_models import MODES, model_and_export
from PIL import Image
from random_images import random_image
from small_onnx import small_onnx

import headstart as hs
from headstart.errors import DataError, ExportError, LargeImage, ModelFileError, OptionError
from headstart.prediction import NONE_OF_THESE, UNSURE
from headstart.runtime import OnnxModel, load
from headstart.runtime.local_images import read_local


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return load(small_onnx(tmp_path_factory.mktemp("runtime") / "small.onnx"))


PATH = str(Path(hs.__file__).parents[1])
OF_THE_ENVIRONMENT = ("_distutils_hack", "__editable___headstart_finder", "_headstart", "sitecustomize", "_virtualenv")
"""Modules that a virtual environment imports at the start of every process."""


def imported_by(script: str) -> tuple[list[str], set[str]]:
    """Lines that a script prints in a new process, and packages outside the standard library that it imports."""
    after = "\nprint(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    whole = f"import sys; sys.path.insert(0, {PATH!r})\n{script}{after}"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return lines, set(ast.literal_eval(last)) - {"__main__", "__mp_main__", "headstart", *OF_THE_ENVIRONMENT}


def test_the_runtime_imports_numpy_pillow_and_onnx_runtime_only(tmp_path: Path) -> None:
    small_onnx(tmp_path / "m.onnx")
    random_image(0, (200, 20, 20)).save(tmp_path / "red.png")
    predict = f"print(load({str(tmp_path / 'm.onnx')!r}).predict({str(tmp_path / 'red.png')!r}).label)"
    assert imported_by("import headstart.runtime") == ([], {"numpy", "PIL"})
    lines, found = imported_by(f"from headstart.runtime import load; {predict}")
    assert (lines, found - {"pillow_heif", "_pillow_heif"}) == (["red"], {"numpy", "PIL", "onnxruntime"})
    assert imported_by("import headstart.runtime, fsspec")[1] == {"numpy", "PIL", "fsspec"}


def test_headstart_predicts_with_an_exported_file_without_pytorch(tmp_path: Path) -> None:
    small_onnx(tmp_path / "m.onnx")
    random_image(0, (200, 20, 20)).save(tmp_path / "red.png")
    script = (
        f"import os; os.chdir({str(tmp_path)!r}); import headstart as hs\n"
        "print(hs.load('m.onnx').predict('red.png').label)\n"
        "sys.argv = ['headstart', 'predict', 'm.onnx', 'red.png']; from headstart.cli.main import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code"
    )
    lines, found = imported_by(script)
    assert lines[0] == "red"
    assert lines[1].startswith("red.png\tred")
    assert not found & {"torch", "timm", "scipy", "sklearn", "fsspec", "onnx", "safetensors", "huggingface_hub"}


def test_every_form_of_an_image_gets_the_same_prediction(small: OnnxModel, tmp_path: Path) -> None:
    image = random_image(1, (20, 200, 20))
    image.save(tmp_path / "g.png")
    array = np.asarray(image)
    given = [tmp_path / "g.png", str(tmp_path / "g.png"), (tmp_path / "g.png").read_bytes(), image, array]
    given += [io.BytesIO((tmp_path / "g.png").read_bytes()), array.astype(np.float32) / 255]
    found = small.predict(given)
    assert [one.label for one in found] == ["green"] * len(given)
    assert [one.path for one in found[:5]] == [str(tmp_path / "g.png")] * 2 + ["<bytes>", "<image>", "<array>"]
    assert [one.probability for one in found] == pytest.approx([found[0].probability] * len(given), abs=1e-6)
    assert small.predict(image).label == "green"
    assert len(small.predict(image, top=2).top) == 2


def test_errors_are_those_of_the_files(small: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("some words")
    (tmp_path / "line.png").write_bytes(encoded(Image.new("RGB", (1, 40_000)), "PNG"))
    (tmp_path / "good.png").write_bytes(encoded(random_image(0), "PNG"))
    names = ["empty.jpg", "text.jpg", "gone.jpg", "line.png", "good.png"]
    found = small.predict([tmp_path / name for name in names])
    assert [one.error for one in found] == [
        "empty file (0 bytes)",
        "not an image: a text file",
        "no such file or directory",
        "aspect ratio too extreme: 1 x 40,000 pixels",
        None,
    ]
    probabilities, errors = small.predict_proba([tmp_path / name for name in names])
    assert sorted(errors) == [0, 1, 2, 3]
    assert np.isnan(probabilities[:4]).all()
    assert probabilities[4].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        ("gone.png", {}, DataError, r"gone\.png: no such file"),
        (".", {}, DataError, r"\.: a folder\. Give the images in it, such as \*\.jpg"),
        (["."], {}, DataError, "a folder"),
        (3, {}, OptionError, "int is not an image. Accepted: a path"),
        ([b"", 3], {}, OptionError, "image 1: int is not an image"),
        (b"", {"top": 0}, OptionError, "top 0: expected a whole number of at least 1"),
        (b"", {"device": "cuda"}, OptionError, "device 'cuda': an ONNX file runs on the CPU"),
        (np.zeros((2, 2, 7), np.uint8), {}, OptionError, r"shape \(2, 2, 7\) is not an image"),
    ],
)
def test_wrong_arguments_are_named(
    given: Any, options: dict[str, Any], error: type[Exception], words: str, small: OnnxModel
) -> None:
    with pytest.raises(error, match=words):
        small.predict(given, **options)


def test_answers_follow_the_thresholds_of_the_file(tmp_path: Path) -> None:
    red, grey = random_image(0, (250, 20, 20)), Image.new("RGB", (64, 64), (120, 120, 120))
    plain = load(small_onnx(tmp_path / "a.onnx"))
    assert [one.answer for one in plain.predict([red, grey])] == ["red", UNSURE]
    several = load(small_onnx(tmp_path / "b.onnx", thresholds=(0.3, 0.5, 0.2)))
    assert [name for name, _ in several.predict(grey).labels or ()] == ["red", "blue"]
    assert several.predict(red).answer == ""
    careful = load(small_onnx(tmp_path / "c.onnx", none_above=0.95))
    assert [one.answer for one in careful.predict([red, grey])] == [NONE_OF_THESE, UNSURE]
    assert careful.predict(grey).outlier == pytest.approx(1 / 3, abs=1e-3)


def test_a_probability_at_the_threshold_counts_as_in_the_model(tmp_path: Path) -> None:
    """The threshold is the probability of a validation image in float64; the graph rounds it to float32."""
    grey = Image.new("RGB", (64, 64), (120, 120, 120))
    probability = load(small_onnx(tmp_path / "a.onnx")).predict(grey).probability
    at, above = (small_onnx(tmp_path / f"{n}.onnx", unsure_below=probability + n) for n in (4e-8, 1e-3))
    assert [load(file).predict(grey).unsure for file in (at, above)] == [False, True]


def test_limits_apply_to_the_content_of_a_request(small: OnnxModel) -> None:
    data = encoded(random_image(0, size=(100, 80)), "PNG")
    assert small.predict_content("a", data, max_pixels=8_000).label is not None
    assert small.predict_content("a", data, max_pixels=7_999).error is not None
    with pytest.raises(LargeImage):
        small.predict_content("a", data, max_decoded_pixels=100)


def test_what_only_a_model_can_do_names_the_remedy(small: OnnxModel) -> None:
    for name in ("embed", "save", "net", "recipe"):
        with pytest.raises(AttributeError, match=rf"no '{name}': .*small\.onnx is an exported file.*\.safetensors"):
            getattr(small, name)
    assert not hasattr(small, "nothing")
    assert repr(small) == "OnnxModel(3 classes, mean_colour)"


@pytest.mark.parametrize(
    "command",
    [("evaluate", "FILE", "DATA"), ("export", "FILE"), ("compare", "FILE", "FILE", "DATA"), ("report", "FILE")],
    ids=lambda command: command[0],
)
def test_other_commands_say_that_an_exported_file_only_predicts(
    command: tuple[str, ...], small: OnnxModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for colour in ("red", "green"):
        (tmp_path / "data" / colour).mkdir(parents=True)
        random_image(0).save(tmp_path / "data" / colour / "1.png")
    names = {"FILE": small.file, "DATA": tmp_path / "data"}
    code, _, err = main(*[names.get(word, word) for word in command], capsys=capsys)
    assert code in (1, 2)
    assert err.startswith("Error: ")
    if command[0] != "report":
        assert "an exported file. hs.load, headstart predict and headstart serve accept it" in err


def test_a_model_is_expected_where_its_layers_are_needed(small: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"small\.onnx: an exported file\. hs\.load, headstart predict"):
        hs.export(small.file, out=tmp_path / "a.onnx")  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_opens_the_file_again(small: OnnxModel) -> None:
    small.predict(random_image(0))
    child = os.fork()
    if child == 0:
        label = small.predict(random_image(0, (250, 0, 0))).label
        os._exit(0 if label == "red" else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_pickled_model_opens_the_file_again_and_sees_another_one(tmp_path: Path) -> None:
    file = small_onnx(tmp_path / "m.onnx")
    data = pickle.dumps(load(file))
    assert pickle.loads(data).predict(random_image(0, (250, 0, 0))).label == "red"
    small_onnx(file, unsure_below=0.9)
    with pytest.raises(ExportError, match="the file was replaced after it was loaded"):
        pickle.loads(data).predict(random_image(0))


@pytest.fixture(scope="module", params=MODES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[hs.Model, OnnxModel]:
    """A model and its exported file."""
    return model_and_export(request.param, tmp_path_factory)


def write_odd_images(folder: Path) -> list[Path]:
    """Images of many sizes, modes and depths, and files that are none."""
    for seed in range(24):
        random_image(seed, size=(40 + 11 * seed, 200 - 6 * seed)).save(folder / f"{seed:02d}.png")
    random_image(30, size=(900, 700)).save(folder / "reduced.jpg")
    rotated = Image.Exif()
    rotated[274] = 6
    random_image(31, size=(90, 60)).save(folder / "rotated.jpg", exif=rotated)
    clear = random_image(32, size=(64, 48)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "transparent.png")
    clear.convert("LA").save(folder / "grey-alpha.png")
    random_image(33).convert("P").save(folder / "palette.gif")
    random_image(34).convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.random.default_rng(0).integers(0, 65536, (50, 70), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "16-bit.png")
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.repeat(deep[..., None], 3, axis=2))
    (folder / "16-bit-colour.png").write_bytes(png(70, 50, depth=16, rows=rows))
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("words")
    (folder / "half.jpg").write_bytes((folder / "reduced.jpg").read_bytes()[:2000])
    (folder / "line.png").write_bytes(encoded(Image.new("RGB", (40_000, 1)), "PNG"))
    return [*sorted(folder.iterdir()), folder / "gone.png"]


def differences(model: Any, exported: Any, paths: list[Path]) -> list[str]:
    """Images whose predictions differ, up to rounding."""
    found = []
    for one, two in zip(model.predict(paths, top=9), exported.predict(paths, top=9), strict=True):
        same = (one.path, one.label, one.answer, one.unsure, one.error) == (
            two.path,
            two.label,
            two.answer,
            two.unsure,
            two.error,
        )
        same &= one.top == tuple((name, pytest.approx(share, abs=1e-5)) for name, share in two.top)
        same &= (one.labels is None) == (two.labels is None)
        same &= [name for name, _ in one.labels or ()] == [name for name, _ in two.labels or ()]
        same &= one.outlier == (None if two.outlier is None else pytest.approx(two.outlier, abs=0.02))
        if not same:
            found.append(f"{one} {two}")
    return found


@pytest.mark.slow
def test_predictions_are_those_of_the_model(both: tuple[hs.Model, OnnxModel], tmp_path: Path) -> None:
    paths = write_odd_images(tmp_path)
    assert differences(*both, paths) == []
    assert len({one.answer for one in both[1].predict(paths)}) > 1


@pytest.mark.slow
def test_a_swapped_class_would_be_a_difference(both: tuple[hs.Model, OnnxModel], tmp_path: Path) -> None:
    random_image(0).save(tmp_path / "a.png")
    model = both[0].replace(classes=both[0].classes[::-1])
    assert differences(model, both[1], [tmp_path / "a.png"])


@pytest.mark.slow
def test_headstart_accepts_folders_and_tensors_for_an_exported_file(
    both: tuple[hs.Model, OnnxModel], tmp_path: Path
) -> None:
    import torch

    for seed in (10, 2, 1):
        random_image(seed).save(tmp_path / f"{seed}.png")
    model, exported = both
    found = exported.predict(tmp_path)
    assert [Path(one.path).name for one in found] == ["1.png", "2.png", "10.png"]
    assert [one.label for one in found] == [one.label for one in model.predict(tmp_path)]
    tensor = torch.from_numpy(np.asarray(random_image(2)).copy()).permute(2, 0, 1)
    assert exported.predict(tensor).path == "<tensor>"
    assert exported.predict(tensor).label == model.predict(tensor).label
    assert exported.calibration_text == model.calibration_text
    assert exported.version == model.version
    assert exported.is_calibrated is model.is_calibrated is True


def test_a_response_is_one_image_and_a_frame_or_dict_none(tmp_path: Path) -> None:
    random_image(1).save(tmp_path / "a.png")

    class Response:
        url = "https://example.org/a.png"
        content = (tmp_path / "a.png").read_bytes()

        def iter_content(self) -> Iterator[bytes]:
            yield self.content[:9]

        __iter__ = iter_content

    class Frame(list[str]):
        columns = ("path",)

    found, is_one = read_local(Response())
    assert ([(one.name, one.content) for one in found], is_one) == ([(Response.url, Response.content)], True)
    for other in ({"path": "a.png"}, Frame(["path"])):
        with pytest.raises(OptionError, match=r"is not an image\. Accepted: a path"):
            read_local(other)
