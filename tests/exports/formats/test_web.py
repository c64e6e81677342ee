"""The folder of a page: its files, its reader, the gate, and the page itself in Chromium."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from browser import browsing, chromium, until
from commands import main
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageCms
from small_models import CLASSES, shown, small_model
from web_pages import fake_runtime_files, file_server, predict_in_page, runtime_files, write_page

import headstart as hs
from headstart.errors import ExportError, OptionError
from headstart.exports.formats import onnx as onnx_format
from headstart.exports.formats.interface import WriteRequest, WrittenFiles
from headstart.exports.formats.onnx import write_onnx
from headstart.exports.formats.registry import open_export
from headstart.exports.formats.web import FORMAT, PAGE_FILES
from headstart.exports.graph import export_metadata
from headstart.exports.metadata import ExportMetadata
from headstart.exports.readers.web_reader import DOCUMENT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def mean_colour() -> onnx.ModelProto:
    """A "classifier": the softmax of an image's mean colour; the outlier score is the share of blue."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["colour"], keepdims=0),
        helper.make_node("Div", ["colour", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("Gather", ["probabilities", "last"], ["outlier"], axis=1),
    ]
    weights = [
        numpy_helper.from_array(np.array([1, 2]), "axes"),
        numpy_helper.from_array(np.float32(30), "scale"),
        numpy_helper.from_array(np.array(2), "last"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", "height", "width", 3])
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["images", 3]),
        helper.make_tensor_value_info("outlier", TensorProto.FLOAT, ["images"]),
    ]
    graph = helper.make_graph(nodes, "small", [pixels], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def colour_metadata(**changes: Any) -> ExportMetadata:
    metadata = export_metadata(small_model(), written_with={})
    found = {"classes": ("red", "green", "blue"), "none_above": 0.9, "unsure_below": 0.5} | changes
    return replace(metadata, **found)


@pytest.fixture
def write_colours(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a page whose model is ``mean_colour``."""

    def write(folder: Path, runtime: Path, **changes: Any) -> Path:
        metadata = colour_metadata(**changes)

        def write_model(request: WriteRequest) -> WrittenFiles:
            write_onnx(mean_colour(), metadata, request.file)
            return WrittenFiles(metadata, {"onnx": request.file})

        monkeypatch.setattr(onnx_format, "FORMAT", replace(onnx_format.FORMAT, write=write_model))
        return write_page(small_model(), folder, runtime)

    return write


@pytest.fixture
def page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_colours: Callable[..., Path]) -> Path:
    return write_colours(tmp_path / "page", fake_runtime_files(tmp_path / "package", monkeypatch))


# ---- files --------------------------------------------------------------------------------------------------------


def test_the_document_lists_every_file_and_the_service_worker_keeps_them(page_folder: Path) -> None:
    about = json.loads((page_folder / DOCUMENT).read_text())
    names = {file.name for file in page_folder.iterdir()}
    assert names == {*about["files"], DOCUMENT}
    assert names > {*PAGE_FILES, "model.onnx"}
    worker = (page_folder / "service-worker.js").read_text()
    assert "{{" not in worker
    kept = json.loads(worker.partition("const FILES = ")[2].partition(";")[0])
    assert {*kept, "service-worker.js"} == names
    assert about["metadata"] | {"sha256": ""} == json.loads(colour_metadata().text())
    for runtime in about["runtimes"].values():
        assert {*runtime.values()} <= names
    assert not any(name.endswith(".mjs") for name in names)


@pytest.mark.slow
def test_another_model_gives_the_service_worker_another_version(
    page_folder: Path, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    other = write_colours(tmp_path / "other", tmp_path / "package", unsure_below=0.6)
    again = write_colours(tmp_path / "again", tmp_path / "package")
    first, second, third = ((folder / "service-worker.js").read_text() for folder in (page_folder, other, again))
    assert first == third != second


def test_the_page_asks_for_nothing_from_elsewhere(page_folder: Path) -> None:
    page = (page_folder / "index.html").read_text()
    policy = page.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "http" not in policy
    for name in ("index.html", "page.js", "page.css", "headstart-web.js", "pixels.js", "service-worker.js"):
        assert "//" not in (page_folder / name).read_text().replace("// ", "").replace("//   ", ""), name


@pytest.mark.slow
def test_the_reader_opens_the_folder_and_refuses_each_change(page_folder: Path, tmp_path: Path) -> None:
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    with open_export(page_folder) as opened:
        assert replace(opened.metadata, sha256="") == colour_metadata()
        assert opened(pixels)[0].shape == (1, 3)
    faults = {
        "model.onnx": lambda file: file.write_bytes(file.read_bytes()[:-1]),
        "page.js": lambda file: file.write_text("other"),
        "headstart-web.js": lambda file: file.unlink(),
        "ort.wasm.min.js": lambda file: file.write_bytes(b"other"),
    }
    for name, change in faults.items():
        copy = tmp_path / "copy"
        shutil.copytree(page_folder, copy)
        change(copy / name)
        with pytest.raises(ExportError, match=rf"copy: {name} is (damaged or was changed|missing)\. Export again"):
            open_export(copy)
        shutil.rmtree(copy)


@pytest.mark.slow
def test_the_reader_refuses_a_document_of_another_model(page_folder: Path) -> None:
    document = page_folder / DOCUMENT
    about = json.loads(document.read_text())
    about["metadata"]["classes"] = ["green", "red", "blue"]
    document.write_text(json.dumps(about))
    with pytest.raises(ExportError, match=r"describes another model than model\.onnx"):
        open_export(page_folder)
    document.write_text("{")
    with pytest.raises(ExportError, match=r"headstart-web\.json is damaged"):
        open_export(page_folder)
    document.write_text("[]")
    with pytest.raises(ExportError, match="not written by headstart export"):
        open_export(page_folder)


def test_the_option_for_the_runtime_is_refused_for_other_formats(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="ort_files: only for format web, not for onnx"):
        hs.export(tmp_path, "onnx", out=tmp_path / "m.onnx", ort_files=tmp_path)


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(12):
        (tmp_path / "images" / CLASSES[i % 3]).mkdir(parents=True, exist_ok=True)
        shown(i).resize((90 + i, 80)).save(tmp_path / "images" / CLASSES[i % 3] / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.exhaustive
@pytest.mark.parametrize("quantize", [[], ["--quantize", "int8", "--allow-loss"]], ids=["float32", "int8"])
def test_the_command_says_what_was_not_checked_and_how_to_use_the_folder(
    quantize: list[str],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime = fake_runtime_files(tmp_path / "package", monkeypatch)
    file = small_model(ood_detector=True).save(tmp_path / "m.safetensors")
    status, out, err = main(
        "export", file, "--to", "web", "--data", images, "--ort-files", runtime, *quantize, capsys=capsys
    )
    assert status == 0, err
    folder = tmp_path / ("m-int8_web" if quantize else "m_web")
    assert FORMAT.is_format_of(folder)
    assert FORMAT.not_checked in out
    assert f'import {{ load }} from "./{folder.name}/headstart-web.js";' in out
    about = json.loads((folder / DOCUMENT).read_text())
    assert list(about["runtimes"]) == (["wasm"] if quantize else ["wasm", "webgpu"])
    assert bool(about["gpu_graphs"]) is not bool(quantize)
    status, out, err = main("verify", folder, images, "--model", file, *quantize[2:], capsys=capsys)
    assert status == 0, err
    assert ("Quantized: " in out) is bool(quantize)


# ---- in the browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """With a GPU in software, which pages do not use unless they are asked to."""
    with chromium(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]) as opened:
        yield opened


def foreign_profile() -> bytes:
    """An ICC profile that exchanges red and green, so that applying it is seen."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"xXYZ").replace(b"gXYZ", b"rXYZ").replace(b"xXYZ", b"gXYZ")


def with_gamma(path: Path, image: Image.Image) -> None:
    image.save(path)
    data, chunk = path.read_bytes(), b"gAMA" + struct.pack(">I", 100_000)
    path.write_bytes(data[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])


def with_alpha(image: Image.Image, alpha: Image.Image | int) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(alpha)
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


LARGE = (1600, 1203)

KINDS: dict[str, Callable[[Path, Image.Image], None]] = {
    "plain.png": lambda path, image: image.save(path),
    "tiny.png": lambda path, image: image.resize((3, 2)).save(path),
    "alpha.png": lambda path, image: with_alpha(image, Image.linear_gradient("L").resize(image.size)).save(path),
    "alpha-zero.png": lambda path, image: with_alpha(image, 0).save(path),
    "palette.gif": lambda path, image: image.convert("P").save(path),
    "grey.png": lambda path, image: image.convert("L").save(path),
    "grey-16-bit.png": lambda path, image: deep(image).save(path),
    "turned.png": lambda path, image: image.save(path, exif=turned(6)),
    "gamma.png": with_gamma,
    "profile.png": lambda path, image: image.save(path, icc_profile=foreign_profile()),
    "lossless.webp": lambda path, image: image.save(path, lossless=True),
    "photo.jpg": lambda path, image: image.save(path, quality=90),
    "profile.jpg": lambda path, image: image.save(path, icc_profile=foreign_profile()),
    "cmyk.jpg": lambda path, image: image.convert("CMYK").save(path),
    "turned.jpg": lambda path, image: image.resize((640, 480)).save(path, exif=turned(5)),
    "large.jpg": lambda path, image: image.resize(LARGE).save(path, quality=92),
    "large-turned.jpg": lambda path, image: image.resize(LARGE).save(path, exif=turned(6)),
    "huge.jpg": lambda path, image: image.resize((4000, 3001)).save(path, progressive=True),
}


@pytest.mark.exhaustive
def test_images_of_every_kind_get_the_predictions_of_the_model(browser: Browser, tmp_path: Path) -> None:
    model = small_model(ood_detector=True)
    write_page(model, tmp_path / "page", runtime_files())
    for place, (name, save) in enumerate(KINDS.items()):
        save(tmp_path / name, shown(60 + place).resize((250, 187), Image.Resampling.BICUBIC))
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8damaged")
    (tmp_path / "empty.png").write_bytes(b"")
    names = [*KINDS, "damaged.jpg", "empty.png"]
    chances, outliers, _ = model.predict_with_outliers([str(tmp_path / name) for name in names])
    with file_server(tmp_path) as site, browsing(browser, site, "/page/licenses.txt") as (page, _wrong):
        found = predict_in_page(page, site, "page", names, backend="wasm")
    for i, name in enumerate(KINDS):
        given = np.array(found[i]["probabilities"])
        print(f"{name}: {np.abs(given - chances[i]).max():.1e}")
        assert np.abs(given - chances[i]).max() < 2e-3, name
        assert abs(found[i]["outlier"] - outliers[i]) < 2e-3, name
    assert [one["error"] for one in found[-2:]] == [
        "Not an image that this browser can decode.",
        "The file is empty.",
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("several", [False, True])
def test_answers_of_the_module_are_those_of_the_metadata(
    several: bool, browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    write_colours(tmp_path / "page", runtime_files(), thresholds=(0.3, 0.3, 0.3) if several else None)
    colours = {"red": (90, 10, 10), "grey": (60, 60, 60), "blue": (0, 0, 200), "yellow": (90, 90, 0)}
    for name, colour in colours.items():
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    with file_server(tmp_path) as site, browsing(browser, site, "/page/licenses.txt") as (page, _wrong):
        found = predict_in_page(page, site, "page", [f"{name}.png" for name in colours])
    given = {name: (one["answer"], one["labels"]) for name, one in zip(colours, found, strict=True)}
    if several:
        assert given["blue"][0] == "none of these"
        assert [name for name, _ in given["yellow"][1]] == ["red", "green"]
        assert given["yellow"][0] == ""
    else:
        assert [given[name][0] for name in colours] == [
            "red",
            "unsure: ask a person",
            "none of these",
            "unsure: ask a person",
        ]
        assert found[0]["top"][0][0] == "red"


@pytest.mark.exhaustive
def test_a_model_with_a_range_of_values_refuses_images_of_more_than_8_bits(
    browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    preprocessing = colour_metadata().preprocessing | {"value_range": [0.1, 0.2]}
    write_colours(tmp_path / "page", runtime_files(), preprocessing=preprocessing)
    deep(shown(1)).save(tmp_path / "deep.png")
    shown(1).save(tmp_path / "usual.png")
    with file_server(tmp_path) as site, browsing(browser, site, "/page/licenses.txt") as (page, _wrong):
        one, two = predict_in_page(page, site, "page", ["deep.png", "usual.png"])
    assert "scales images of more than 8 bits" in one["error"]
    assert "error" not in two


@pytest.mark.exhaustive
def test_a_changed_file_is_refused_by_the_module(
    browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    folder = write_colours(tmp_path / "page", runtime_files())
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1] + b" ")
    with file_server(tmp_path) as site, browsing(browser, site, "/page/") as (page, _wrong):
        until(page, "!document.querySelector('#notice').hidden")
        assert "model.onnx is damaged or from another export" in page.inner_text("#notice")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda text: text.replace('"green"', '"greem"'), "headstart-web.json is damaged or from another export"),
        (lambda text: text[: len(text) // 2], "headstart-web.json is damaged"),
        (lambda _text: "<!doctype html>", "headstart-web.json is damaged"),
        (lambda _text: "[]", "headstart-web.json is damaged"),
    ],
    ids=["class", "cut", "html", "other"],
)
def test_a_changed_document_is_refused_by_the_module(
    fault: Callable[[str], str], message: str, browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    folder = write_colours(tmp_path / "page", runtime_files())
    (folder / DOCUMENT).write_text(fault((folder / DOCUMENT).read_text()))
    with file_server(tmp_path) as site, browsing(browser, site, "/page/") as (page, _wrong):
        until(page, "!document.querySelector('#notice').hidden || !document.querySelector('#drop').hidden")
        assert message in page.inner_text("#notice")
        assert "Copy the whole folder to the server again." in page.inner_text("#notice")


@pytest.mark.exhaustive
def test_classes_with_odd_characters_are_read_from_the_end_of_the_model(
    browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    classes = ('<img src=x onerror="document.title=1">', '{"headstart_export"', "\u2028 \U0001f339 وردة" + "é" * 200)
    write_colours(tmp_path / "page", runtime_files(), classes=classes)
    Image.new("RGB", (20, 20), (90, 10, 10)).save(tmp_path / "red.png")
    with file_server(tmp_path) as site, browsing(browser, site, "/page/") as (page, wrong):
        until(page, "!document.querySelector('#drop').hidden")
        assert page.evaluate("[...document.querySelectorAll('#classes li')].map((li) => li.textContent)") == [*classes]
        page.set_input_files("#files", tmp_path / "red.png")
        until(page, "document.querySelector('.bars')")
        assert answers(page) == [classes[0]]
        assert page.title().startswith("Image classifier")
        assert wrong == []


@pytest.mark.exhaustive
def test_a_page_of_several_labels_says_so(browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]) -> None:
    write_colours(tmp_path / "page", runtime_files(), thresholds=(0.3, 0.3, 0.3))
    with file_server(tmp_path / "page") as site, browsing(browser, site) as (page, _wrong):
        until(page, "!document.querySelector('#drop').hidden")
        assert "An image can have several labels." in page.inner_text("#facts")


@pytest.mark.exhaustive
def test_an_image_that_needs_too_much_memory_is_named_as_such(
    served_page: tuple[Page, list[str]], tmp_path: Path
) -> None:
    page, _ = served_page
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    page.set_input_files("#files", [tmp_path / "large.png", tmp_path / "red.png"])
    until(page, "document.querySelectorAll('.card:not(.waiting)').length === 2", seconds=120)
    assert "too many pixels for the memory of this browser" in page.inner_text(".card.fault")
    assert answers(page)[1] == "red", "the next image is computed"


@pytest.mark.exhaustive
def test_the_gpu_is_used_only_if_it_gives_the_same_answers(browser: Browser, tmp_path: Path) -> None:
    model = small_model(ood_detector=True)
    folder = write_page(model, tmp_path / "page", runtime_files())
    names = [f"{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        shown(70 + i).resize((120, 90 + i)).save(tmp_path / name)
    chances, _, _ = model.predict_with_outliers([str(tmp_path / name) for name in names])
    network = folder / "network.onnx"
    wrong = onnx.load(network, load_external_data=False)
    bias = next(tensor for tensor in wrong.graph.initializer if tensor.name == "head.0.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0, 0.5, 0]), bias.name))
    with file_server(tmp_path) as site:
        for backend in ("webgpu", "wasm"):
            if backend == "wasm":  # the GPU differs now
                _replace(folder, network, wrong.SerializeToString())
            with browsing(browser, site, "/page/licenses.txt") as (page, _wrong):
                if not page.evaluate("navigator.gpu?.requestAdapter().then(Boolean) ?? false"):
                    pytest.skip("this Chromium has no WebGPU in software")
                found = predict_in_page(page, site, "page", names, backend="webgpu")
                assert page.evaluate("model.backend") == backend
            assert np.abs(np.array([one["probabilities"] for one in found]) - chances).max() < 1e-4


def _replace(folder: Path, file: Path, data: bytes) -> None:
    """Replaces a file of a page as if it had been exported so."""
    file.write_bytes(data)
    about = json.loads((folder / DOCUMENT).read_text())
    about["files"][file.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / DOCUMENT).write_text(json.dumps(about))


@pytest.fixture
def served_page(
    browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> Iterator[tuple[Page, list[str]]]:
    """The page of ``mean_colour``, loaded."""
    write_colours(tmp_path / "page", runtime_files())
    for name, colour in {"red": (90, 10, 10), "grey": (60, 60, 60), "blue": (0, 0, 200)}.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    with file_server(tmp_path / "page") as site, browsing(browser, site, width=390) as (page, wrong):
        until(page, "!document.querySelector('#drop').hidden")
        yield page, wrong


def answers(page: Page) -> list[str]:
    """Answers of the cards: those added last first, and each batch in its order."""
    return page.evaluate("[...document.querySelectorAll('.card')].map((card) => card.dataset.answer)")


@pytest.mark.exhaustive
def test_bars_are_as_long_as_the_probabilities(served_page: tuple[Page, list[str]], tmp_path: Path) -> None:
    page, _ = served_page
    page.set_input_files("#files", tmp_path / "grey.png")
    until(page, "document.querySelector('.bars')")
    shares = "[...document.querySelectorAll('.fill')].map((bar) => bar.offsetWidth / bar.parentElement.offsetWidth)"
    assert page.evaluate(shares) == pytest.approx([1 / 3] * 3, abs=0.02)


@pytest.mark.exhaustive
def test_chosen_pasted_and_dropped_images_get_answers(served_page: tuple[Page, list[str]], tmp_path: Path) -> None:
    page, wrong = served_page
    page.set_input_files("#files", [tmp_path / "red.png", tmp_path / "grey.png"])
    until(page, "document.querySelectorAll('.card[data-answer]').length === 2")
    page.set_input_files("#shot", tmp_path / "blue.png")
    until(page, "document.querySelectorAll('.card[data-answer]').length === 3")
    assert answers(page) == ["none of these", "red", "unsure: ask a person"]
    assert "Unlike the training images. Nearest class: blue" in page.inner_text(".card:first-child")
    assert "red.png: red, 8" in page.inner_text("#said") or "none of these" in page.inner_text("#said")
    for event, field in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """async ([event, field]) => {
              const canvas = new OffscreenCanvas(20, 20);
              const context = canvas.getContext("2d");
              context.fillStyle = "rgb(10 90 10)";
              context.fillRect(0, 0, 20, 20);
              const files = new DataTransfer();
              files.items.add(new File([await canvas.convertToBlob()], "green.png", { type: "image/png" }));
              const made = event === "paste"
                ? new ClipboardEvent(event, { clipboardData: files, bubbles: true })
                : new DragEvent(event, { dataTransfer: files, bubbles: true, cancelable: true });
              document.body.dispatchEvent(made);
            }""",
            [event, field],
        )
    until(page, "document.querySelectorAll('.card[data-answer]').length === 5")
    assert answers(page)[:2] == ["green", "green"]
    page.set_input_files("#files", {"name": "text.png", "mimeType": "image/png", "buffer": b"text"})
    until(page, "document.querySelector('.card.fault') !== null")
    assert "cannot" in page.inner_text(".card.fault") or "can decode" in page.inner_text(".card.fault")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#clear")
    assert answers(page) == []
    assert [text for text in wrong if "adapter" not in text] == []


@pytest.mark.exhaustive
def test_the_live_camera_gets_answers_and_an_image_can_be_kept(served_page: tuple[Page, list[str]]) -> None:
    page, wrong = served_page
    page.click("#live")
    until(page, "!document.querySelector('#keep').disabled")
    assert page.inner_text("#seen") != "Waiting for the camera"
    page.click("#keep")
    until(page, "document.querySelectorAll('.card[data-answer]').length === 1")
    page.keyboard.press("Escape")
    assert page.is_hidden("#camera")
    assert page.evaluate("document.querySelector('#video').srcObject") is None
    assert [text for text in wrong if "adapter" not in text] == []


@pytest.mark.exhaustive
def test_the_page_works_without_a_network_and_with_threads_once_it_was_loaded(
    browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    write_colours(tmp_path / "page", runtime_files())
    Image.new("RGB", (40, 30), (90, 10, 10)).save(tmp_path / "red.png")
    with file_server(tmp_path / "page") as site:
        context = browser.new_context()
        page = context.new_page()
        page.goto(site)
        until(page, "document.querySelector('#about').dataset.offline === 'true'")
        assert page.evaluate("crossOriginIsolated") is False
        time.sleep(0.2)
    page.reload()  # the server is gone
    until(page, "!document.querySelector('#drop').hidden")
    assert page.evaluate("crossOriginIsolated") is True
    page.set_input_files("#files", tmp_path / "red.png")
    until(page, "document.querySelector('.card[data-answer]') !== null")
    assert answers(page) == ["red"]
    assert "threads" in page.inner_text("#about") or page.evaluate("navigator.hardwareConcurrency") == 1
    context.close()


@pytest.mark.exhaustive
def test_the_printed_snippet_runs_in_a_page_beside_the_folder(
    browser: Browser, tmp_path: Path, write_colours: Callable[..., Path]
) -> None:
    folder = write_colours(tmp_path / "page", runtime_files())
    Image.new("RGB", (40, 30), (90, 10, 10)).save(tmp_path / "image.jpg")
    text = FORMAT.snippets["javascript"](folder, colour_metadata())
    (tmp_path / "own.html").write_text(f'<!doctype html><script type="module">\n{text}\n</script>')
    with file_server(tmp_path) as site:
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"{site}/own.html")
        until(page, "document.readyState === 'complete'")
        deadline = time.monotonic() + 30
        while not any(line.startswith("red 0.") for line in said):
            assert time.monotonic() < deadline, said
            page.wait_for_timeout(50)
        page.close()


def test_the_types_name_every_field_of_a_prediction(page_folder: Path) -> None:
    module = (page_folder / "headstart-web.js").read_text()
    fields = [field.strip() for field in module.partition("  return { answer, ")[2].partition(" };")[0].split(", ")]
    fields = ["answer", *(field.partition(":")[0] for field in fields if ")" not in field.partition(":")[0])]
    types = (page_folder / "headstart-web.d.ts").read_text()
    assert {"label", "top", "probabilities"} <= {*fields}
    for name in fields:
        assert f"readonly {name}: " in types, name
