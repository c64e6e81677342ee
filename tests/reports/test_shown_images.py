"""Thumbnails and heat maps that are kept in the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_images import COLOURS, random_image
from torch import nn

from headstart.backbone.pixel_net import FeatureNet
from headstart.backbone.weights import random_backbone
from headstart.model import Model
from headstart.reports import shown_images
from headstart.reports.gradcam import heat_map_overlay, heat_maps
from headstart.reports.shown_images import heat_map_overlays, thumbnails
from headstart.training.recipe import Recipe

SIDE = 64


def written(folder: Path, count: int) -> list[str]:
    paths = [str(folder / f"{i}.png") for i in range(count)]
    for i, path in enumerate(paths):
        random_image(i, size=(90 + i, 70)).save(path)
    return paths


def model_of(seed: int, *, backbone_seed: int = 0) -> Model:
    net = FeatureNet(random_backbone("resnet18", image_size=SIDE, seed=backbone_seed))
    torch.manual_seed(seed)
    return Model(net, nn.Linear(512, 3), list(COLOURS), recipe=Recipe(), data={}, scores={})


def pixels_of(images: list[Image.Image | None]) -> list[bytes | None]:
    return [None if image is None else image.tobytes() for image in images]


def damage_rows(cache: Path) -> None:
    for file in cache.rglob("rows.bin"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 255
        file.write_bytes(data)


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(shown_images, name, fail)


def test_thumbnails_are_reduced_in_proportion(tmp_path: Path) -> None:
    paths = written(tmp_path, 2)
    made = thumbnails(paths, 40, Image.Resampling.BILINEAR, cache=tmp_path / "cache")
    for path, image in zip(paths, made, strict=True):
        assert image is not None
        expected = Image.open(path).convert("RGB")
        expected.thumbnail((40, 40), Image.Resampling.BILINEAR)
        assert image.size == expected.size
        assert image.tobytes() == expected.tobytes()


def test_a_thumbnail_is_decoded_once_whatever_its_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, cache = written(tmp_path, 3), tmp_path / "cache"
    cold = pixels_of(thumbnails(paths, 40, Image.Resampling.BILINEAR, cache=cache))
    other = tmp_path / "other.png"
    other.write_bytes(Path(paths[1]).read_bytes())
    forbid(monkeypatch, "decode")
    assert pixels_of(thumbnails([*paths, str(other)], 40, Image.Resampling.BILINEAR, cache=cache)) == [*cold, cold[1]]
    with pytest.raises(AssertionError, match="decode"):
        thumbnails(paths, 41, Image.Resampling.BILINEAR, cache=cache)


def test_a_damaged_thumbnail_is_decoded_again(tmp_path: Path) -> None:
    paths, cache = written(tmp_path, 3), tmp_path / "cache"
    cold = pixels_of(thumbnails(paths, 40, Image.Resampling.LANCZOS, cache=cache))
    damage_rows(cache)
    assert pixels_of(thumbnails(paths, 40, Image.Resampling.LANCZOS, cache=cache)) == cold


def test_a_file_that_is_no_image_or_is_gone_has_no_thumbnail(tmp_path: Path) -> None:
    paths, cache = written(tmp_path, 2), tmp_path / "cache"
    Path(paths[0]).write_text("no image")
    made = thumbnails([*paths, str(tmp_path / "gone.png")], 40, Image.Resampling.BILINEAR, cache=cache)
    assert [image is None for image in made] == [True, False, True]


def test_a_file_that_changes_while_it_is_read_is_not_cached_under_its_former_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = written(tmp_path, 1)
    before = Path(path).read_bytes()
    file_key = shown_images._file_key

    def changed_after(name: str) -> bytes:
        key = file_key(name)
        random_image(9, size=(50, 50)).save(path)
        return key

    with monkeypatch.context() as patch:
        patch.setattr(shown_images, "_file_key", changed_after)
        assert thumbnails([path], 40, Image.Resampling.BILINEAR, cache=tmp_path / "cache") == [None]
    Path(path).write_bytes(before)
    (image,) = thumbnails([path], 40, Image.Resampling.BILINEAR, cache=tmp_path / "cache")
    assert image is not None
    assert image.size == (40, 31)


@pytest.mark.slow
def test_heat_maps_are_computed_once_for_each_image_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, cache, model = written(tmp_path, 3), tmp_path / "cache", model_of(0)
    cold = heat_map_overlays(model, paths, [0, 1, 2], cache=cache)
    seen = [model.preprocess(path) for path in paths]
    heats = heat_maps(model, seen, [0, 1, 2])
    assert heats is not None
    for overlay, pixels, heat in zip(cold, seen, heats, strict=True):
        assert np.array_equal(overlay, heat_map_overlay(pixels, heat))
    asked = []
    monkeypatch.setattr(shown_images, "heat_maps", lambda *given: asked.append(given[2]) or heat_maps(*given))
    warm = heat_map_overlays(model_of(0), paths[::-1], [2, 1, 1], cache=cache)
    assert asked == [[1]], "only the first image is explained for another class"
    assert np.array_equal(warm[:2], cold[:0:-1])
    assert not np.array_equal(warm[2], cold[0])


@pytest.mark.slow
def test_other_weights_have_other_heat_maps(tmp_path: Path) -> None:
    paths, cache = written(tmp_path, 1), tmp_path / "cache"
    models = [model_of(0), model_of(1), model_of(0, backbone_seed=1)]
    found = [heat_map_overlays(model, paths, [0], cache=cache)[0] for model in models]
    plain = [heat_map_overlays(model, paths, [0], cache=tmp_path / str(i))[0] for i, model in enumerate(models)]
    assert np.array_equal(found, plain)
    assert len({overlay.tobytes() for overlay in found if overlay is not None}) == 3


@pytest.mark.slow
def test_a_damaged_heat_map_is_computed_again(tmp_path: Path) -> None:
    paths, cache, model = written(tmp_path, 3), tmp_path / "cache", model_of(0)
    cold = heat_map_overlays(model, paths, [0, 1, 2], cache=cache)
    damage_rows(cache)
    assert np.array_equal(heat_map_overlays(model, paths, [0, 1, 2], cache=cache), cold)


def test_an_image_that_cannot_be_read_has_no_heat_map(tmp_path: Path) -> None:
    paths = [*written(tmp_path, 1), str(tmp_path / "gone.png")]
    found = heat_map_overlays(model_of(0), paths, [0, 1], cache=tmp_path / "cache")
    assert [overlay is None for overlay in found] == [False, True]
