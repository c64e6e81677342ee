from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageFilter
from random_images import random_image

from headstart.data.inspection import inspect
from headstart.data.preprocessing import CropMode
from headstart.data.quality import quality_issues
from headstart.data.scan import scan


def detailed(seed: int) -> Image.Image:
    """Sharp: edges from one pixel to the next."""
    return random_image(seed, size=(300, 260)).resize((30, 26)).resize((300, 260), Image.Resampling.NEAREST)


def white_page() -> Image.Image:
    """White but for a small mark with sharp edges."""
    page = Image.new("RGB", (300, 260), "white")
    page.paste((60, 60, 60), (100, 100, 150, 130))
    return page


ODD = {
    "blank": lambda: Image.new("RGB", (300, 260), (90, 120, 200)),
    "dark": lambda: detailed(70).point(lambda v: v // 4),
    "bright": lambda: white_page(),
    "blurred": lambda: detailed(72).filter(ImageFilter.GaussianBlur(12)),
    "tiny": lambda: detailed(73).resize((40, 50)),
    "extreme-aspect-ratio": lambda: detailed(74).resize((900, 260), Image.Resampling.NEAREST),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_image_is_named_with_its_reason_and_no_other(tmp_path: Path, kind: str) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        (ODD[kind]() if i == 5 else detailed(i)).save(path)
    found = {own.kind: own for own in quality_issues(scan([str(p) for p in paths], cache=tmp_path / "cache"))}
    assert set(found) == {kind}
    assert found[kind].positions == (5,)
    assert any(character.isdigit() for character in found[kind].reasons[0])


def test_what_becomes_of_a_panorama_depends_on_the_fit(tmp_path: Path) -> None:
    for i in range(6):
        (ODD["extreme-aspect-ratio"]() if i == 5 else detailed(i)).save(tmp_path / f"{i}.png")
    scanned = scan([str(tmp_path / f"{i}.png") for i in range(6)], cache=tmp_path / "cache")
    words = {mode: quality_issues(scanned, crop_mode=mode)[0].words for mode in get_args(CropMode)}
    assert all(text.startswith("extremely long or wide: ") for text in words.values())
    assert "fit pad (--fit pad) shows all of it" in words["center"]
    assert "padding" in words["border"]
    assert "distorted" in words["squash"]


def test_what_most_images_are_is_their_nature_and_faults_no_single_one(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "d" / split / label).mkdir(parents=True)
            for i in range(10):
                detailed(1000 * (split == "val") + 100 * (label == "b") + i).resize((40, 44)).save(
                    tmp_path / "d" / split / label / f"{i}.png"
                )
    found = [f for f in inspect(tmp_path / "d", cache=tmp_path / "cache").findings if f.kind == "tiny"]
    assert [f.severity for f in found] == ["note"]
    assert "most likely a property of the data" in found[0].message
    assert not found[0].items


def test_sharpness_falls_with_blur_and_does_not_depend_on_contrast(tmp_path: Path) -> None:
    image = detailed(3)
    versions = [image, image.filter(ImageFilter.GaussianBlur(1)), image.filter(ImageFilter.GaussianBlur(4))]
    versions.append(Image.eval(image, lambda v: 100 + v // 4))
    for i, version in enumerate(versions):
        version.save(tmp_path / f"{i}.png")
    sharp = scan([str(tmp_path / f"{i}.png") for i in range(4)], cache=tmp_path / "cache").facts["sharpness"]
    assert sharp[0] > 2 * sharp[1] > 4 * sharp[2]
    assert np.isclose(sharp[3], sharp[0], rtol=0.1)
