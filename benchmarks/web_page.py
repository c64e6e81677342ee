"""An exported page in Chromium against `predict`: pixels of JPEG files, and predictions of six backbones.

    python benchmarks/web_page.py FOLDER --ort-files PACKAGE --part pixels
    python benchmarks/web_page.py FOLDER --ort-files PACKAGE [--backbones resnet50 ...] [--model RUN] [--average]

FOLDER has photographs; PACKAGE is a folder or archive of the npm package onnxruntime-web. Both parts resize the
photographs to odd sizes.

Part "pixels" writes JPEGs of each chroma subsampling and compares what the page computes at 1/2, 1/4 and 1/8 with what
Headstart decodes: mean and largest difference in grey levels, with the browser's decoder and with the page's average,
which is what other browsers use.

Part "predictions" writes 50 JPEGs of quality 70 to 96 with any of Pillow's subsamplings, and 10 PNGs. Each backbone
has a random head, whose logits have a standard deviation of 3 over the photographs, and temperature 0.7; --model
measures a trained model instead. It prints how many of the images whose margin exceeds 0.05 (JPEG) or 0.001 (PNG) get
the same class, and the largest and the median difference of a probability; the same for the JPEGs that are reduced,
and with --average for these with the page's average. Every row is a JSON line.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from browser import chromium
from encoded_images import subsampled_jpeg
from small_models import CLASSES, SPREAD
from web_pages import file_server, predict_in_page, write_page

import headstart as hs
from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone, random_backbone
from headstart.data.decode import decode
from headstart.data.listing import find_images
from headstart.data.preprocessing import resize_and_crop
from headstart.model import Model
from headstart.training.head_spec import HeadSpec
from headstart.training.heads import build_head
from headstart.training.recipe import Recipe
from headstart.trust.calibration import Calibration

BACKBONES = (
    DEFAULT_BACKBONE,
    "mobilenetv2_100",
    "resnet50",
    "convnext_tiny",
    "vit_small_patch16_224",
    "vgg16",
)
SUBSAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2), "4:4:0": (1, 2), "4:1:1": (4, 1), "grey": (0, 0)}
MIN_SIDE = 256
PNGS = 10
MARGINS = {"JPEG": 0.05, "PNG": 1e-3}

READ = """async ([module, image, side]) => {
  const { readPixels } = await import(module);
  const blob = await (await fetch(image)).blob();
  const { data, width, height } = await readPixels(blob, { preprocessing: {}, decode_at_least: side });
  return [width, height, btoa(Array.from(data, (value) => String.fromCharCode(value)).join(""))];
}"""

NO_DECODER = "delete globalThis.ImageDecoder"
"""Makes a page of Chromium average JPEGs, as it does where there is no such decoder."""


def odd_sizes(paths: Sequence[str], rng: np.random.Generator) -> Iterator[Image.Image]:
    """The photographs, from a third to nine times as large, with other proportions."""
    for path in paths:
        photo = Image.open(path).convert("RGB")
        scale, stretch = 2 ** rng.uniform(-1.5, 3.2), 2 ** rng.uniform(-0.5, 0.5)
        size = (max(16, int(photo.width * scale)), max(16, int(photo.height * scale * stretch)))
        yield photo.resize(size, Image.Resampling.LANCZOS)


def write_images(paths: Sequence[str], folder: Path) -> list[str]:
    """JPEGs, then PNGs; returns their names."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    names = []
    for i, photo in enumerate(odd_sizes(paths, rng)):
        names.append(f"{i}.jpg" if i < len(paths) - PNGS else f"{i}.png")
        if names[-1].endswith(".png"):
            photo.thumbnail((700, 611))
            photo.save(folder / names[-1])
        else:
            photo.save(folder / names[-1], quality=int(rng.integers(70, 97)), subsampling=int(rng.integers(0, 3)))
    return names


def is_reduced(path: Path, side: int) -> bool:
    with Image.open(path) as image:
        return path.suffix == ".jpg" and min(image.size) >= 2 * side


def random_head(name: str, paths: Sequence[Path]) -> Model:
    """A model with weights of the installed package, or random ones, and a random head, scaled on images."""
    backbone = load_backbone() if name == DEFAULT_BACKBONE else random_backbone(name)
    net = FeatureNet(backbone, FeatureSpec("auto", ""))
    torch.manual_seed(0)
    head = build_head(HeadSpec.parse("linear"), feature_shape(net), len(CLASSES)).eval().requires_grad_(False)
    pixels = [torch.tensor(resize_and_crop(decode(path).image, backbone.preprocessing))[None] for path in paths]
    with torch.no_grad():
        logits = torch.cat([head(net(one)) for one in pixels])
    last = [module for module in head.modules() if isinstance(module, torch.nn.Linear)][-1]
    scale = SPREAD / logits.std(0)
    last.bias.sub_(logits.mean(0)).mul_(scale)
    last.weight.mul_(scale[:, None])
    calibration = Calibration(temperature=0.7, images=100, target_accuracy=0.95, threshold=0.6)
    return Model(net, head, CLASSES, recipe=Recipe(), data={}, scores={}, calibration=calibration)


def agreement(given: np.ndarray, expected: np.ndarray, margin: float) -> dict[str, Any]:
    second, first = np.sort(expected, axis=1)[:, -2:].T
    is_clear = first - second > margin
    differences = np.abs(given - expected).max(axis=1)
    return {
        "same": int((given.argmax(axis=1) == expected.argmax(axis=1))[is_clear].sum()),
        "of": int(is_clear.sum()),
        "largest": float(f"{differences.max():.2g}"),
        "median": float(f"{np.median(differences):.2g}"),
    }


def predictions(page: Page, site: str, names: Sequence[str]) -> np.ndarray:
    found = predict_in_page(page, site, "page", [f"images/{name}" for name in names], backend="wasm")
    assert not any("error" in one for one in found), found
    return np.array([one["probabilities"] for one in found])


def measured(model: Model, names: list[str], root: Path, given: argparse.Namespace, browser: Browser) -> dict[str, Any]:
    """Agreement of the page of a model; ``root`` has the images."""
    started = time.perf_counter()
    (root / "served").mkdir()
    write_page(model, root / "served" / "page", given.ort_files)
    (root / "served" / "images").symlink_to(root / "images")
    paths = [root / "images" / name for name in names]
    expected, _, _ = model.predict_with_outliers([str(path) for path in paths], device="cpu")
    side = model.net.backbone.preprocessing.decode_at_least
    reduced = [i for i, path in enumerate(paths) if is_reduced(path, side)]
    with file_server(root / "served") as site:
        page = browser.new_page()
        page.goto(f"{site}/page/licenses.txt")
        found = predictions(page, site, names)
        page.goto(f"{site}/page/licenses.txt")
        page.evaluate(NO_DECODER)
        averaged = predictions(page, site, [names[i] for i in reduced if given.average])
        page.close()
    kinds = {"JPEG": slice(0, -PNGS), "PNG": slice(-PNGS, None)}
    row: dict[str, Any] = {kind: agreement(found[part], expected[part], MARGINS[kind]) for kind, part in kinds.items()}
    row["reduced"] = agreement(found[reduced], expected[reduced], MARGINS["JPEG"])
    if given.average:
        row["averaged"] = agreement(averaged, expected[reduced], MARGINS["JPEG"])
    return row | {"seconds": round(time.perf_counter() - started)}


def compare_predictions(given: argparse.Namespace, paths: list[str]) -> None:
    chosen = paths[:: max(1, len(paths) // (given.images + PNGS))][: given.images + PNGS]
    models = [given.model] if given.model else given.backbones
    for name in models:
        with tempfile.TemporaryDirectory() as folder, chromium() as browser:
            root = Path(folder)
            names = write_images(chosen, root / "images")
            images = [root / "images" / one for one in names[::3]]
            model = hs.load(name) if given.model else random_head(name, images)
            row = {"model": Path(name).name} | measured(model, names, root, given, browser)
            print(json.dumps(row), flush=True)


def read_in_page(page: Page, site: str, name: str) -> np.ndarray:
    width, height, text = page.evaluate(READ, [f"{site}/page/pixels.js", f"{site}/images/{name}", MIN_SIDE])
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 3).astype(int)


def write_subsampled(paths: Sequence[str], kind: str, factor: int, folder: Path) -> list[str]:
    names = []
    for i, path in enumerate(paths):
        photo = Image.open(path).convert("RGB")
        photo = photo.resize((factor * MIN_SIDE + 45, factor * MIN_SIDE + 77), Image.Resampling.LANCZOS)
        names.append(f"{kind.replace(':', '')}-{factor}-{i}.jpg")
        if kind == "grey":
            photo.convert("L").save(folder / names[-1], quality=90)
        else:
            (folder / names[-1]).write_bytes(subsampled_jpeg(photo, *SUBSAMPLINGS[kind]))
    return names


def compare_pixels(paths: list[str]) -> None:
    chosen = paths[:: max(1, len(paths) // 8)][:8]
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        root = Path(folder)
        (root / "images").mkdir()
        (root / "page").symlink_to(Path(hs.__file__).parent / "exports" / "web_page")
        with file_server(root) as site:
            for kind in SUBSAMPLINGS:
                for factor in (2, 4, 8):
                    names = write_subsampled(chosen, kind, factor, root / "images")
                    row: dict[str, Any] = {"subsampling": kind, "reduced to": f"1/{factor}"}
                    for way, script in {"decoder": "0", "average": NO_DECODER}.items():
                        page = browser.new_page()
                        page.goto(f"{site}/page/licenses.txt")
                        page.evaluate(script)
                        apart = [np.abs(read_in_page(page, site, name) - pixels(root, name)) for name in names]
                        page.close()
                        row[way] = {
                            "mean": round(float(np.mean([one.mean() for one in apart])), 3),
                            "largest": int(max(one.max() for one in apart)),
                        }
                    print(json.dumps(row), flush=True)


def pixels(root: Path, name: str) -> np.ndarray:
    return np.asarray(decode(root / "images" / name, min_side=MIN_SIDE).image).astype(int)


def main() -> None:
    """Prints a JSON line for each kind of file, or for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--ort-files", type=Path, required=True)
    parser.add_argument("--part", choices=["predictions", "pixels"], default="predictions")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--model", help="a run or a model file")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--average", action="store_true", help="also measure reduced JPEGs with the page's average")
    given = parser.parse_args()
    paths = sorted(find_images(Path(given.data)))
    if given.part == "pixels":
        compare_pixels(paths)
    else:
        compare_predictions(given, paths)


if __name__ == "__main__":
    main()
