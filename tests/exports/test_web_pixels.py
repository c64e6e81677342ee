"""Pixels that an exported page computes, against those of the decoder: equal, or as near as an average can be."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import browsing, chromium
from encoded_images import subsampled_jpeg
from PIL import Image
from random_images import random_image
from web_pages import file_server

import headstart
from headstart.data.decode import decode

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FILES = Path(headstart.__file__).parent / "exports" / "web_page"
SIDE = 64
"""Shorter side that is kept, in pixels."""

SUBSAMPLINGS = [(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)]

READ = """async (images) => {
  const { readPixels } = await import("./pixels.js");
  const read = async (image) => {
    const blob = await (await fetch(image)).blob();
    const { data, width, height } = await readPixels(blob, { preprocessing: {}, decode_at_least: 64 });
    return [width, height, btoa(Array.from(data, (value) => String.fromCharCode(value)).join(""))];
  };
  const found = [];
  for (const image of images) found.push(await read(image));
  return found;
}"""

NO_DECODER = "delete globalThis.ImageDecoder"

RESAMPLING_DECODER = """(quality) => { globalThis.used = 0; globalThis.ImageDecoder = class {
  constructor({ data, desiredWidth, desiredHeight }) { Object.assign(this, { data, desiredWidth, desiredHeight }); }
  async decode() {
    used += 1;
    const image = await createImageBitmap(new Blob([this.data]), {
      resizeWidth: this.desiredWidth, resizeHeight: this.desiredHeight, resizeQuality: quality,
    });
    return { image: new VideoFrame(image, { timestamp: 0 }) };
  }
  close() {}
}; }"""
"""A decoder that decodes the whole image and resamples it; Firefox does so with another filter."""


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Coloured areas with edges, and noise."""
    image = np.asarray(random_image(seed, (120, 90, 60)).resize((width, height), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 1))
    return Image.fromarray((image + noise).clip(0, 255).astype(np.uint8))


def test_the_checkerboard_has_two_values_at_a_quarter_of_its_size() -> None:
    found = re.search("CHECKERBOARD = `([^`]*)`", (FILES / "pixels.js").read_text())
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found[1])))
    assert image.size == (16, 16)
    image.draft(None, (4, 4))
    assert np.array_equal(np.asarray(image), np.array([191, 64])[np.indices((4, 4)).sum(axis=0) % 2])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A page without a content security policy beside ``pixels.js``, on a server of the test's folder."""
    (tmp_path / "page").symlink_to(FILES)
    with file_server(tmp_path) as site, browsing(browser, site, "/page/licenses.txt") as (opened, _wrong):
        yield opened


def read_in_page(page: Page, *files: Path) -> list[np.ndarray]:
    found = page.evaluate(READ, [f"../{file.name}" for file in files])
    return [np.frombuffer(base64.b64decode(data), np.uint8).reshape(h, w, 3) for w, h, data in found]


def decoded(file: Path) -> np.ndarray:
    return np.asarray(decode(file, min_side=SIDE).image)


def write_jpegs(folder: Path) -> list[Path]:
    """Every chroma subsampling at 1/2, 1/4 and 1/8, grey and turned files."""
    files = []
    for factor in (2, 4, 8):
        image = photo(factor, SIDE * factor + 45, SIDE * factor + 77)
        for across, down in SUBSAMPLINGS:
            files.append(folder / f"{across}x{down}-{factor}.jpg")
            files[-1].write_bytes(subsampled_jpeg(image, across, down))
        files.append(folder / f"grey-{factor}.jpg")
        image.convert("L").save(files[-1])
    return files


@pytest.mark.slow
def test_the_decoder_of_chromium_gives_equal_pixels(page: Page, tmp_path: Path) -> None:
    files = write_jpegs(tmp_path)
    exif = Image.Exif()
    for orientation in range(2, 9):
        exif[0x0112] = orientation
        files.append(tmp_path / f"turned-{orientation}.jpg")
        photo(orientation, 301, 203).save(files[-1], exif=exif)
    files.append(tmp_path / "progressive.jpg")
    photo(1, 301, 203).save(files[-1], progressive=True)
    for file, found in zip(files, read_in_page(page, *files), strict=True):
        assert np.array_equal(found, decoded(file)), file.name


@pytest.mark.slow
def test_the_average_of_other_browsers_differs_by_rounding(page: Page, tmp_path: Path) -> None:
    files = write_jpegs(tmp_path)
    page.evaluate(NO_DECODER)
    for file, found in zip(files, read_in_page(page, *files), strict=True):
        apart = np.abs(found.astype(int) - decoded(file))
        print(f"{file.name}: {apart.mean():.3f}, at most {apart.max()}")
        assert apart.mean() < 0.5, file.name
        assert np.quantile(apart, 0.999) <= 4, file.name


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["pixelated", "low"])
def test_a_decoder_that_resamples_is_not_used(quality: str, page: Page, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    photo(1, 301, 203).save(file)
    page.evaluate(RESAMPLING_DECODER, quality)
    (found,) = read_in_page(page, file)
    assert page.evaluate("used") == 1  # for the checkerboard
    page.goto(page.url)
    page.evaluate(NO_DECODER)
    (averaged,) = read_in_page(page, file)
    assert np.array_equal(found, averaged)


@pytest.mark.slow
def test_an_image_of_several_strips_is_composited_over_white_to_its_end(page: Page, tmp_path: Path) -> None:
    image = photo(1, 2500, 2100).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    file = tmp_path / "alpha.png"
    image.save(file, compress_level=1)
    (found,) = read_in_page(page, file)
    assert np.abs(found.astype(int) - decoded(file)).max() <= 2
