from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import timm
from PIL import Image
from random_images import random_image
from timm.data import create_transform

from headstart.data.preprocessing import CropMode, Fit, Preprocessing, resize_and_crop
from headstart.errors import OptionError
from headstart.training.recipe import FitName

WHOLE: tuple[Fit, ...] = ("pad", "squash")
GREEN, RED, WHITE = (0, 255, 0), (255, 0, 0), (255, 255, 255)


@pytest.mark.parametrize("crop_mode", get_args(CropMode))
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("size", [(500, 333), (224, 224), (90, 400), (257, 256), (300, 103), (1000, 30), (5, 3)])
def test_pixels_equal_timms_own_evaluation_transform(
    crop_mode: CropMode, crop_pct: float, size: tuple[int, int]
) -> None:
    config = dict(timm.get_pretrained_cfg("resnet18").to_dict())
    own = Preprocessing(
        height=224, width=224, crop_pct=crop_pct, crop_mode=crop_mode, mean=config["mean"], std=config["std"]
    )
    theirs = create_transform(
        (3, 224, 224),
        is_training=False,
        interpolation="bicubic",
        mean=own.mean,
        std=own.std,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        use_prefetcher=True,
    )
    image = random_image(7, size=size)
    expected = np.asarray(theirs(image))
    expected = expected.transpose(1, 2, 0) if expected.shape[0] == 3 else expected
    apart = np.abs(resize_and_crop(image, own).astype(int) - expected)
    tall = size[1] > 2 * size[0]  # from 13 on, Pillow resizes such images down before across
    assert apart.max() <= (2 if tall else 0)


def test_tall_images_are_resized_across_first_whatever_the_version_of_pillow() -> None:
    image = random_image(7, size=(90, 400))
    across = image.resize((60, 400), Image.Resampling.BICUBIC)
    expected = np.asarray(across.resize((60, 80), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_and_crop(image, Preprocessing(80, 60, 1.0, crop_mode="squash")), expected)


def framed(size: tuple[int, int]) -> Image.Image:
    """Green, with a red frame of an eighth of each side, at least 2 pixels."""
    image, (x, y) = Image.new("RGB", size, RED), (max(2, side // 8) for side in size)
    image.paste(GREEN, (x, y, size[0] - x, size[1] - y))
    return image


def reddish(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 200) & (pixels[..., 1] < 100)


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (300, 299), (64, 64), (60, 3000), (17, 16)])
@pytest.mark.parametrize("image_size", [64, 97])
@pytest.mark.parametrize("fit", WHOLE)
def test_pad_and_squash_show_all_four_edges_of_an_image(fit: Fit, image_size: int, size: tuple[int, int]) -> None:
    trained = Preprocessing(image_size, image_size, 0.875, mean=(1.0, 1.0, 1.0))
    shown = resize_and_crop(framed(size), trained.with_fit(fit))
    content = (shown != WHITE).any(axis=2)
    rows, columns = np.flatnonzero(content.any(axis=1)), np.flatnonzero(content.any(axis=0))
    inside = shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if fit == "squash":
        assert inside.shape == shown.shape
    else:
        assert max(inside.shape[:2]) == image_size
        assert abs(inside.shape[1] / inside.shape[0] - size[0] / size[1]) <= max(size) / image_size
        assert abs(rows[0] - (image_size - 1 - rows[-1])) <= 1
        assert abs(columns[0] - (image_size - 1 - columns[-1])) <= 1
    if min(inside.shape[:2]) > 8:
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert reddish(edge).all()


def test_the_centre_crop_cuts_the_edges_off_and_keeps_the_crop_of_the_weights() -> None:
    for trained in (Preprocessing(64, 64, 0.875), Preprocessing(64, 64, 0.9, crop_mode="squash")):
        assert not reddish(resize_and_crop(framed((400, 100)), trained.with_fit("crop"))[:, 0]).all()
        assert trained.with_fit("crop").crop_pct == trained.crop_pct
        assert trained.with_fit("auto") is trained


def test_an_image_one_pixel_short_of_the_input_is_padded_with_the_mean_colour() -> None:
    padded = Preprocessing(64, 64, mean=(1.0, 1.0, 1.0)).with_fit("pad")
    shown = resize_and_crop(Image.new("RGB", (128, 126), GREEN), padded)
    assert (shown[:63] == GREEN).all()
    assert (shown[63] == WHITE).all()


def test_an_image_of_one_line_is_shown_where_a_centre_crop_would_take_gigabytes() -> None:
    line = Image.new("RGB", (400_000, 1), GREEN)
    for fit in WHOLE:
        assert (resize_and_crop(line, Preprocessing(64, 64).with_fit(fit)) == GREEN).all(axis=2).any()


def test_each_fit_has_other_pixels_another_cache_key_and_a_sentence() -> None:
    trained, image = Preprocessing(64, 64, 0.875), random_image(3, size=(200, 90))
    fits = [trained.with_fit(fit) for fit in get_args(Fit)]
    assert [one.sentence for one in fits] == [
        "Images are resized to cover 73 x 73 pixels and cropped to the central 64 x 64 pixels.",
        "Images are resized to cover 73 x 73 pixels and cropped to the central 64 x 64 pixels.",
        "Whole images are resized to fit into 64 x 64 pixels and padded with the mean colour.",
        "Whole images are resized to 64 x 64 pixels without keeping their aspect ratio.",
    ]
    assert fits[0] == fits[1]
    assert len({resize_and_crop(image, one).tobytes() for one in fits}) == 3
    assert len({str(one.pixel_key()) for one in fits}) == 3
    assert "cropped to the central 64 x 64" in Preprocessing(64, 64, 0.9, crop_mode="border").sentence


def test_an_unknown_fit_is_refused_and_the_recipe_has_the_same_ones() -> None:
    with pytest.raises(OptionError, match="fit 'stretch': expected one of auto, crop, pad, squash"):
        Preprocessing(64, 64).with_fit("stretch")  # type: ignore[arg-type]
    assert get_args(FitName) == get_args(Fit)
