from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_images import random_image

from headstart.data import scan as scanning
from headstart.data.decode import decode
from headstart.data.pixel_cache import pixel_store
from headstart.data.preprocessing import Preprocessing, resize_and_crop
from headstart.data.scan import measure_value_range, scan
from headstart.errors import UnreadableImage

SMALL = Preprocessing(height=32, width=32)


def test_unusable_files_are_named_and_the_others_keep_their_places(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i in (0, 2, 5):
        random_image(i).save(paths[i])
    paths[1].write_bytes(b"")
    paths[3].write_text("no image")
    result = scan([str(p) for p in paths], preprocessing=SMALL, cache=tmp_path / "cache")
    assert set(result.faults) == {1, 3, 4}
    assert result.faults[4] == "no such file or directory"
    assert result.usable.tolist() == [True, False, True, False, False, True]
    assert result.facts["width"].tolist() == [48, 0, 48, 0, 0, 48]
    pixels = pixel_store(SMALL, tmp_path / "cache").read([result.keys[i] for i in (5, 0)])
    for row, i in zip(pixels, (5, 0), strict=True):
        assert np.array_equal(row, resize_and_crop(decode(paths[i]).image, SMALL))


def test_nothing_is_decoded_twice_not_even_elsewhere_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        random_image(i).save(tmp_path / f"{i}.png")
    first = scan([str(tmp_path / f"{i}.png") for i in range(3)], preprocessing=SMALL, cache=tmp_path / "cache")
    shutil.copy(tmp_path / "1.png", tmp_path / "copy.png")

    def fail(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(scanning, "decode", fail)
    again = scan([str(tmp_path / "copy.png")], preprocessing=SMALL, cache=tmp_path / "cache")
    assert again.keys == [first.keys[1]]
    assert again.facts[0] == first.facts[1]


def test_facts_do_not_depend_on_the_preprocessing(tmp_path: Path) -> None:
    random_image(0, size=(1500, 1300)).save(tmp_path / "a.jpg")
    plain = scan([str(tmp_path / "a.jpg")], cache=tmp_path / "1")
    large = Preprocessing(height=700, width=700)
    with_pixels = scan([str(tmp_path / "a.jpg")], preprocessing=large, cache=tmp_path / "2")
    assert plain.facts[0] == with_pixels.facts[0]
    expected = resize_and_crop(decode(tmp_path / "a.jpg", min_side=large.decode_at_least).image, large)
    assert np.array_equal(pixel_store(large, tmp_path / "2").read(with_pixels.keys)[0], expected)


def test_the_range_of_values_is_that_of_percentiles_over_all_images_alike(tmp_path: Path) -> None:
    dark, light = np.full((40, 50), 1000, np.uint16), np.full((4, 5), 3000, np.uint16)
    light[0, 0] = 60_000  # one value of twenty
    for name, values in {"dark": dark, "light": light}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / "dark.png"), str(tmp_path / "light.png")]
    low, high = measure_value_range(paths)
    assert (round(low * 65535), round(high * 65535)) == (1000, 60_000)
    light[0, 0] = 3000
    Image.fromarray(light).save(tmp_path / "light.png")
    low, high = measure_value_range(paths)
    assert (round(low * 65535), round(high * 65535)) == (1000, 3000)
    low, high = measure_value_range(paths[:1])
    assert 0 <= low < high <= 1
    random_image(0).save(tmp_path / "dark.png")
    with pytest.raises(UnreadableImage, match="8 bits per channel"):
        measure_value_range(paths)
