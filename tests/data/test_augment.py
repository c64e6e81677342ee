from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
from encoded_images import encoded
from PIL import Image
from random_images import random_image

from headstart.data.augment import Augmentation, view, view_key, views
from headstart.data.preprocessing import CropMode, Preprocessing, Rgb, resize_and_crop, shown_size
from headstart.errors import OptionError, UnreadableImage

KEY = bytes(range(16))
SMALL = Preprocessing(height=64, width=64)
NOTHING = Augmentation(flip=False, scale=(1, 1), ratio=(1, 1), rotate=0, colour=0)


def seen(
    image: Image.Image,
    augmentation: Augmentation,
    number: int = 0,
    *,
    key: bytes = KEY,
    seed: int = 1,
    preprocessing: Preprocessing = SMALL,
) -> Rgb:
    return view(image, key, number, seed=seed, augmentation=augmentation, preprocessing=preprocessing)


def where(size: tuple[int, int] = (256, 256)) -> Image.Image:
    """Red says how far right a pixel stands, green how far down."""
    down, right = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(np.stack([right, down, np.zeros_like(down)], axis=2).astype(np.uint8))


def steps(pixels: Rgb) -> npt.NDArray[np.float64]:
    """[[right per column, right per row], [down per column, down per row]] of a view of ``where``, in its pixels."""
    height, width, _ = pixels.shape
    rows, columns = np.mgrid[4 : height - 4, 4 : width - 4]
    design = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)], axis=1)
    found, *_ = np.linalg.lstsq(design, pixels[4:-4, 4:-4, :2].reshape(-1, 2).astype(float), rcond=None)
    return np.asarray(found[:2].T)


def sides(pixels: Rgb) -> tuple[float, float]:
    """(width, height) of the crop, in the image's pixels, from an unturned view of ``where``."""
    (across, _), (_, down) = steps(pixels)
    return abs(across) * pixels.shape[1], down * pixels.shape[0]


def test_a_view_depends_on_nothing_but_its_arguments() -> None:
    image = random_image(1, size=(300, 200))
    numbers = list(range(24))
    alone = [seen(image, Augmentation(), number) for number in numbers]
    np.random.seed(0)
    backwards = [seen(image.copy(), Augmentation(), number) for number in reversed(numbers)][::-1]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda number: seen(image, Augmentation(), number), numbers))
    assert np.array_equal(alone, backwards)
    assert np.array_equal(alone, threaded)


@pytest.mark.slow
def test_another_process_gives_the_same_bits() -> None:
    script = """
import hashlib, numpy as np
from PIL import Image
from headstart.data.augment import Augmentation, view
from headstart.data.preprocessing import Preprocessing
image = Image.fromarray(np.arange(90 * 70 * 3).reshape(70, 90, 3).astype(np.uint8))
made = [view(image, bytes(range(16)), n, seed=1, augmentation=Augmentation(), preprocessing=Preprocessing(64, 64))
        for n in (5, 2)]
print(hashlib.sha256(np.stack(made).tobytes()).hexdigest())
"""
    done = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in "ab"]
    from_here = io.StringIO()
    exec(script, {"print": lambda text: from_here.write(text + "\n")})
    assert {d.stdout for d in done} == {from_here.getvalue()}


def test_number_seed_and_key_each_give_another_view() -> None:
    image = random_image(2)
    made = [seen(image, Augmentation(), number) for number in range(20)]
    made += [seen(image, Augmentation(), seed=seed) for seed in range(2, 20)]
    made += [seen(image, Augmentation(), key=bytes([n]) * 16) for n in range(20)]
    made += [seen(image, Augmentation(), number=1, seed=11), seen(image, Augmentation(), number=11, seed=2)]
    assert len({pixels.tobytes() for pixels in made}) == len(made)


def test_without_any_change_a_view_is_the_resized_image() -> None:
    image = random_image(3, size=(200, 200))
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(seen(image, NOTHING), expected)
    linear = Preprocessing(64, 64, interpolation="bilinear")
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(seen(image, NOTHING, preprocessing=linear), expected)


@pytest.mark.slow
def test_half_of_the_views_are_mirrored_and_none_where_sides_matter() -> None:
    turned = [np.linalg.det(steps(seen(where(), Augmentation(colour=0), n))) < 0 for n in range(200)]
    assert 70 < sum(turned) < 130
    kept = [np.linalg.det(steps(seen(where(), Augmentation(flip=False, colour=0), n))) > 0 for n in range(200)]
    assert all(kept)


@pytest.mark.parametrize("rotate", [0, 10])
def test_mirroring_decides_nothing_else(rotate: float) -> None:
    image, mirrored = random_image(4), []
    for number in range(30):
        plain = seen(image, Augmentation(flip=False, rotate=rotate), number).astype(int)
        either = seen(image, Augmentation(flip=True, rotate=rotate), number)
        mirrored.append(np.abs(either - plain).max() > 1)
        assert np.abs(either - (plain[:, ::-1] if mirrored[-1] else plain)).max() <= 1
    assert 5 < sum(mirrored) < 25


@pytest.mark.slow
def test_the_crop_keeps_to_its_scale_and_its_ratio_and_goes_everywhere() -> None:
    augmentation = Augmentation(rotate=0, colour=0)
    made = [seen(where(), augmentation, number) for number in range(300)]
    crops = np.array([sides(pixels) for pixels in made])
    scale, ratio = crops.prod(axis=1) / 256**2, crops[:, 0] / crops[:, 1]
    assert 0.345 < scale.min() < 0.40
    assert 0.95 < scale.max() < 1.01
    assert 0.64 < scale.mean() < 0.71
    assert 0.74 < ratio.min() < 0.80
    assert 1.25 < ratio.max() < 1.35
    first, last = np.array([p[2, 2] for p in made]), np.array([p[-3, -3] for p in made])
    assert (np.minimum(first, last)[:, :2].min(axis=0) < 12).all()
    assert (np.maximum(first, last)[:, :2].max(axis=0) > 243).all()


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_the_ratio_is_relative_to_the_networks_own(crop_mode: CropMode) -> None:
    wide = Preprocessing(height=48, width=96, crop_mode=crop_mode)
    made = [seen(where((256, 128)), Augmentation(rotate=0, colour=0), n, preprocessing=wide) for n in range(200)]
    assert {pixels.shape for pixels in made} == {(48, 96, 3)}
    ratio = np.array([w / h / 2 for w, h in map(sides, made)])
    assert 0.74 < ratio.min() < 0.82
    assert 1.22 < ratio.max() < 1.35


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
@pytest.mark.parametrize("size", [(256, 100), (90, 256), (64, 64)])
def test_where_the_whole_image_is_shown_a_view_without_any_change_is_the_input(
    crop_mode: CropMode, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(64, 48, 1.0, crop_mode=crop_mode)
    image = random_image(3, size=size)
    seen_in_training = seen(image, NOTHING, preprocessing=preprocessing).astype(int)
    assert np.abs(seen_in_training - resize_and_crop(image, preprocessing)).max() <= 2  # one resize instead of two


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
def test_where_the_whole_image_is_shown_views_keep_its_shape_and_most_of_it(crop_mode: CropMode) -> None:
    """A crop of the network's ratio would keep 16 to 44 % of this image, enlarged by up to 2.6."""
    preprocessing = Preprocessing(64, 64, 1.0, crop_mode=crop_mode, mean=(0, 0, 1))
    image = where((256, 80))
    made = [seen(image, Augmentation(rotate=0, colour=0), n, preprocessing=preprocessing) for n in range(200)]
    width, height = shown_size(image.size, preprocessing)
    assert (width, height) == ((64, 64) if crop_mode == "squash" else (64, 20))
    top = (64 - height) // 2
    crops = np.array([sides(pixels[top : top + height]) for pixels in made])
    kept, shape = crops.prod(axis=1) / (256 * 80), (crops[:, 0] / 256) / (crops[:, 1] / 80)
    assert 0.33 < kept.min() < 0.40
    assert 0.93 < kept.max() < 1.03
    assert 0.72 < shape.min() < 0.82
    assert 1.22 < shape.max() < 1.39


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (20, 400), (400, 3), (1, 7), (63, 64)])
def test_a_padded_view_has_the_bars_of_the_input_and_nothing_but_the_image_between_them(size: tuple[int, int]) -> None:
    padded = Preprocessing(64, 64, mean=(0.1, 0.2, 0.3)).with_fit("pad")
    white = Image.new("RGB", size, "white")
    expected = resize_and_crop(white, padded)
    for number in range(40):
        pixels = seen(white, Augmentation(rotate=45, colour=0), number, preprocessing=padded)
        assert np.array_equal(pixels, expected)
        coloured = seen(white, Augmentation(), number, preprocessing=padded)
        bars = (expected == padded.fill).all(axis=2)
        assert (coloured[bars] == padded.fill).all()


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
def test_rotation_cuts_a_wide_image_no_further_than_a_square_one(crop_mode: CropMode) -> None:
    full = Augmentation(flip=False, scale=(1, 1), ratio=(1, 1), rotate=10, colour=0)
    preprocessing = Preprocessing(120, 120, 1.0, crop_mode=crop_mode)
    kept = []
    for size in ((256, 256), (256, 64)):
        top = (120 - shown_size(size, preprocessing)[1]) // 2
        made = [seen(where(size), full, n, preprocessing=preprocessing)[top : 120 - top] for n in range(40)]
        kept.append(
            min(abs(np.linalg.det(steps(pixels))) * pixels[..., 0].size / (size[0] * size[1]) for pixels in made)
        )
    square, wide = kept
    assert 0.70 < square < 0.80
    assert wide > square - 0.05


def test_a_panorama_gives_the_largest_crops_that_its_ratio_allows() -> None:
    made = [seen(where((256, 40)), Augmentation(rotate=0, colour=0), number) for number in range(40)]
    for width, height in map(sides, made):
        assert height == pytest.approx(40, abs=0.5)
        assert width == pytest.approx(40 * 4 / 3, abs=1)
    assert np.ptp([float(pixels[32, 32, 0]) for pixels in made]) > 120


def test_the_angle_keeps_to_its_bounds_and_goes_to_both_sides() -> None:
    augmentation = Augmentation(flip=False, ratio=(1, 1), rotate=20, colour=0)
    found = np.array([steps(seen(where(), augmentation, number)) for number in range(200)])
    angles = np.degrees(np.arctan2(found[:, 1, 0], found[:, 0, 0]))
    assert -20.3 < angles.min() < -17
    assert 17 < angles.max() < 20.3
    assert np.allclose(angles, np.degrees(np.arctan2(-found[:, 0, 1], found[:, 1, 1])), atol=0.5)  # no shear
    area = np.linalg.det(found) * 64**2 / 256**2
    assert area.min() > 0.345
    assert area.max() <= 1.01


@pytest.mark.parametrize("rotate", [10, 45, 180])
@pytest.mark.parametrize("size", [(300, 200), (64, 64), (20, 400)])
def test_only_pixels_of_the_image_are_shown(rotate: float, size: tuple[int, int]) -> None:
    white = Image.new("RGB", size, "white")
    for number in range(60):
        for preprocessing in (SMALL, Preprocessing(height=40, width=90)):
            pixels = seen(white, Augmentation(rotate=rotate, colour=0), number, preprocessing=preprocessing)
            assert pixels.min() == 255


def test_colours_change_within_their_bounds_and_grey_stays_grey() -> None:
    flat = Image.new("RGB", (50, 40), (120, 120, 120))
    grey = np.array([seen(flat, Augmentation(), number)[0, 0] for number in range(200)]).astype(int)
    assert np.ptp(grey, axis=1).max() == 0
    assert 96 <= grey.min() < 102  # only brightness moves an image without contrast
    assert 138 < grey.max() <= 144
    kept = Augmentation(flip=False, scale=(1, 1), ratio=(1, 1), rotate=0, colour=0.3)
    halves = Image.fromarray(np.repeat(np.array([[[70] * 3] * 8, [[130] * 3] * 8], dtype=np.uint8), 4, axis=0))
    spread = [np.ptp(p.astype(int)) / p.mean() for p in (seen(halves, kept, n) for n in range(200))]
    before = np.ptp(seen(halves, NOTHING).astype(int)) / 100
    assert 0.69 < min(spread) / before < 0.75
    assert 1.25 < max(spread) / before < 1.31
    rose = Image.new("RGB", (8, 8), (180, 100, 100))
    luma = np.array([0.299, 0.587, 0.114])
    chroma = [np.ptp(p[0, 0].astype(int)) / (p[0, 0] @ luma) for p in (seen(rose, kept, n) for n in range(200))]
    before = 80 / (np.array([180, 100, 100]) @ luma)
    assert 0.48 < min(chroma) / before < 0.60  # contrast times saturation: 0.49 to 1.69
    assert 1.45 < max(chroma) / before < 1.70


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 3), (1, 3000), (2500, 2)])
def test_the_smallest_images_have_views(size: tuple[int, int]) -> None:
    for number in range(30):
        pixels = seen(Image.new("RGB", size, (200, 100, 50)), Augmentation(colour=0, rotate=30), number)
        assert pixels.shape == (64, 64, 3)
        assert pixels.dtype == np.uint8
        assert (pixels == (200, 100, 50)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(300, 280), (2300, 1700)])
def test_views_of_a_file_are_the_views_of_its_image(kind: str, size: tuple[int, int]) -> None:
    image = random_image(5, size=size)
    numbers = [7, 0, 3]
    made = views(
        encoded(image, kind, quality=95), KEY, numbers, seed=1, augmentation=Augmentation(), preprocessing=SMALL
    )
    assert made.shape == (3, 64, 64, 3)
    assert made.dtype == np.uint8
    expected = np.stack([seen(image, Augmentation(), number) for number in numbers])
    assert np.abs(made.astype(int) - expected).mean() < 3
    if kind == "PNG" and size == (300, 280):
        assert np.array_equal(made, expected)


def test_no_numbers_give_no_views_and_a_damaged_file_is_named() -> None:
    data = encoded(random_image(6), "PNG")
    assert views(data, KEY, [], seed=1, augmentation=NOTHING, preprocessing=SMALL).shape == (0, 64, 64, 3)
    with pytest.raises(UnreadableImage, match="truncated"):
        views(data[:300], KEY, [0], seed=1, augmentation=NOTHING, preprocessing=SMALL)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"scale": (0, 1)}, "scale"),
        ({"scale": (0.5, 1.2)}, "scale"),
        ({"scale": (0.9, 0.5)}, "scale"),
        ({"scale": (0.5,)}, "scale"),
        ({"scale": (float("nan"), 1)}, "scale"),
        ({"ratio": (-1, 1)}, "ratio"),
        ({"ratio": (2, 1)}, "ratio"),
        ({"ratio": (1, float("inf"))}, "ratio"),
        ({"rotate": -1}, "rotate"),
        ({"rotate": 181}, "rotate"),
        ({"rotate": float("nan")}, "rotate"),
        ({"colour": -0.1}, "colour"),
        ({"colour": 1}, "colour"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(settings: dict[str, object], name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}.*expected"):
        Augmentation(**settings)


def test_the_description_is_json_and_holds_every_setting() -> None:
    about = Augmentation().describe()
    assert json.loads(json.dumps(about)) == about
    assert set(about) == {"version"} | {field.name for field in fields(Augmentation)}


def test_the_key_of_a_view_is_unique_and_stable() -> None:
    keys = {view_key(bytes([n]) * 16, number) for n in range(50) for number in range(50)}
    assert len(keys) == 2500
    assert {len(key) for key in keys} == {16}
    assert KEY not in keys
    assert view_key(KEY, 3).hex() == "3410699f5f3ea05dabedb703a87a2932"
