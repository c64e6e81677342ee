"""Activations: the same numbers whether they are kept or recomputed; nothing is lost by a kill."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from random_images import write_classes

from headstart.backbone.pixel_net import ActivationNet, FeatureNet, split_backbone
from headstart.backbone.split import INPUT
from headstart.backbone.weights import Backbone, random_backbone
from headstart.cache.entries import cache_root
from headstart.data.augment import Augmentation
from headstart.data.pixel_cache import pixel_store
from headstart.data.scan import scan
from headstart.engine.conv_bn_fusion import fold_for_training
from headstart.engine.interface import EXACT_ENGINES, Engine
from headstart.engine.plan import EnginePlan
from headstart.engine.select import choose_engine
from headstart.engine.torch_engine import TorchEngine
from headstart.errors import CacheError, DataError
from headstart.features import activations as module
from headstart.features import extract
from headstart.features.activations import Activations, Continuation, ImageFiles, Views
from headstart.features.extract import compute_features
from headstart.pipeline.featurise import tap_at
from headstart.pipeline.load import Loaded
from headstart.training.finetune import FineTuneSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("resnet18", image_size=32)


def images_of(folder: Path, backbone: Backbone) -> ImageFiles:
    """Read into the default cache and those that the tests use."""
    files = sorted(map(str, folder.rglob("*.png")))
    caches = [cache_root(), *(folder.parent / name for name in ("cache", "whole", "stopped"))]
    scans = [scan(files, preprocessing=backbone.preprocessing, cache=cache) for cache in caches]
    return ImageFiles(files, scans[0].keys)


def activations(
    backbone: Backbone,
    images: ImageFiles,
    cache: Path,
    *,
    boundary: str = "layer2",
    views: int = 3,
    keep: bool = True,
    engine: Engine | None = None,
    source: tuple[Activations, Continuation] | None = None,
) -> Activations:
    split = split_backbone(backbone)
    net = ActivationNet(backbone, boundary, split.prefix(boundary))
    return Activations(
        net,
        images,
        shape=next(b.shape for b in split.boundaries if b.name == boundary),
        engine=engine or TorchEngine(net, CPU),
        views=Views(views, 0, Augmentation()) if views else None,
        keep=keep,
        cache=cache,
        source=source,
    )


@pytest.fixture
def images(tmp_path: Path, backbone: Backbone) -> ImageFiles:
    return images_of(write_classes(tmp_path / "data", {"a": 10, "b": 9}), backbone)


@pytest.mark.parametrize("boundary", ["layer2", INPUT])
def test_cached_and_recomputed_activations_are_bit_identical(
    boundary: str, backbone: Backbone, images: ImageFiles, tmp_path: Path
) -> None:
    """Law 2."""
    kept = activations(backbone, images, tmp_path / "cache", boundary=boundary)
    anew = activations(backbone, images, tmp_path / "cache", boundary=boundary, keep=False)
    kept.prepare()
    assert kept.keep
    assert (len(kept.plain), len(kept.store)) == (19, 2 * 19)
    rows = [(18, 2), (0, 0), (7, 1), (7, 1), (0, 2)]
    assert torch.equal(kept.read(rows), anew.read(rows))
    assert not torch.equal(kept.read([(0, 0)]), kept.read([(0, 1)]))


def test_the_first_view_is_the_image_as_it_is(backbone: Backbone, images: ImageFiles, tmp_path: Path) -> None:
    viewed = activations(backbone, images, tmp_path / "cache")
    viewed.prepare()
    plain = activations(backbone, images, tmp_path / "cache", views=0)
    assert not plain._missing(range(len(images)))  # one row serves both
    rows = [(image, 0) for image in range(19)]
    assert torch.equal(viewed.read(rows), plain.read(rows))


@pytest.mark.slow
@pytest.mark.parametrize("engine_name", EXACT_ENGINES)
def test_what_was_kept_while_features_were_computed_is_what_would_be_made(
    engine_name: str, backbone: Backbone, images: ImageFiles, tmp_path: Path
) -> None:
    """By the same engine; and the features are what they are without it, to the bit."""
    net, cache = FeatureNet(backbone), tmp_path / "cache"
    pixels = pixel_store(backbone.preprocessing).read(images.keys)
    plan = EnginePlan(exact=engine_name, fast=engine_name, rates={engine_name: 1.0})
    made = activations(backbone, images, tmp_path / "whole", views=0)
    engine = choose_engine(made.net, count=19, sample=pixels, plan=plan, exact=False)
    assert engine_name in engine.name
    made = activations(backbone, images, tmp_path / "whole", views=0, engine=engine)
    made.prepare()
    frozen = split_backbone(backbone)
    boundary = next(b for b in frozen.boundaries if b.name == "layer2")
    tap = tap_at(boundary, Loaded(backbone, net, frozen, 0.0), cache=cache)
    features = partial(compute_features, net, images.keys, engines=plan, exact=False)
    without = features(cache=tmp_path / "whole").read(images.keys)
    tapped = features(tap=tap, cache=cache).read(images.keys)
    assert np.array_equal(without, tapped)
    found = activations(backbone, images, cache, views=0, engine=engine)
    assert not found._missing(range(len(images)))
    rows = [(image, 0) for image in range(19)]
    assert torch.equal(found.read(rows), made.read(rows))


def test_validation_sees_the_images_as_they_are(backbone: Backbone, images: ImageFiles) -> None:
    plain = activations(backbone, images, cache_root(), boundary=INPUT, views=0)
    plain.prepare()
    pixels = torch.from_numpy(pixel_store(backbone.preprocessing).read([images.keys[4]]))
    assert torch.equal(plain.read([(4, 0)]), plain.net.normalised(pixels).half().float())


def test_a_kill_loses_one_batch_and_what_follows_is_the_same(
    backbone: Backbone, images: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "APPEND", 16)
    whole = activations(backbone, images, tmp_path / "whole")
    whole.prepare()
    stopped = activations(backbone, images, tmp_path / "stopped")
    append, calls = stopped._append, 0

    def killed(rows: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        append(rows)  # type: ignore[arg-type]

    monkeypatch.setattr(stopped, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        stopped.prepare()
    again = activations(backbone, images, tmp_path / "stopped")
    assert (len(again.plain), len(again.store)) == (19, 16)
    again.prepare()
    rows = [(image, view) for image in range(19) for view in range(3)]
    assert torch.equal(again.read(rows), whole.read(rows))


def test_more_views_keep_those_that_there_are(
    backbone: Backbone, images: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations(backbone, images, tmp_path / "cache", views=2).prepare()
    made: list[int] = []
    more = activations(backbone, images, tmp_path / "cache", views=3)
    make = more._make
    monkeypatch.setattr(more, "_make", lambda rows: made.extend(view for _, view in rows) or make(rows))  # type: ignore[func-returns-value]
    more.prepare()
    assert made == [2] * 19


def test_a_later_boundary_is_made_from_an_earlier_one(backbone: Backbone, images: ImageFiles, tmp_path: Path) -> None:
    split = split_backbone(backbone)
    early = activations(backbone, images, tmp_path / "cache", boundary="layer2")
    early.prepare()
    late = activations(backbone, images, tmp_path / "cache", boundary="layer3")
    part = split.segment("layer2", "layer3")
    assert isinstance(part, torch.fx.GraphModule)
    source = early, Continuation("layer2", fold_for_training(part, torch.float32), torch.float32)
    through = activations(backbone, images, tmp_path / "cache", boundary="layer3", source=source)
    assert through.store.folder != late.store.folder
    coarse = early, Continuation("layer2", fold_for_training(part, torch.bfloat16), torch.bfloat16)
    other = activations(backbone, images, tmp_path / "cache", boundary="layer3", source=coarse)
    assert other.store.folder != through.store.folder, "rows of another precision would be found here"
    assert other.plain.folder != through.plain.folder
    late.prepare()
    through.prepare()
    rows = [(image, 1) for image in range(19)]
    direct, derived = late.read(rows), through.read(rows)
    assert float((direct - derived).norm() / direct.norm()) < 2e-3


@pytest.mark.parametrize("batch_size", [16, 48])
def test_a_step_of_fine_tuning_makes_its_rows_and_no_more(
    backbone: Backbone, images: ImageFiles, tmp_path: Path, batch_size: int
) -> None:
    """Whatever batches the engine likes that made the earlier ones."""
    early = activations(backbone, images, tmp_path / "cache", boundary="layer2")
    early.prepare()
    early.engine.batch_size = batch_size
    part = split_backbone(backbone).segment("layer2", "layer3")
    made: list[int] = []
    part.register_forward_pre_hook(lambda _, given: made.append(len(given[0])))
    source = early, Continuation("layer2", part, torch.float32)
    through = activations(backbone, images, tmp_path / "cache", boundary="layer3", keep=False, source=source)
    rows = [(image, view) for image in range(16) for view in (0, 1)]
    assert through.read(rows).shape == (FineTuneSettings(1).batch_size, *through.shape)
    assert made == [FineTuneSettings(1).batch_size]


@pytest.mark.slow
def test_where_reading_is_dearer_nothing_is_kept(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(write_classes(tmp_path / "data", {"a": 45, "b": 45}), backbone)
    slow = activations(backbone, images, tmp_path / "cache")
    read, now = slow.store.read, 0.0

    def slowly(keys: object) -> np.ndarray:
        nonlocal now
        now += 100.0
        return read(keys)  # type: ignore[arg-type]

    monkeypatch.setattr(slow.store, "read", slowly)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    slow.prepare()
    assert not slow.keep
    assert "recomputed each time: a row of" in slow.reason
    assert len(slow.store) < 3 * 90
    assert slow.read([(3, 1)]).shape == (1, *slow.shape)


def test_an_image_that_changed_since_it_was_read_is_named(
    backbone: Backbone, images: ImageFiles, tmp_path: Path
) -> None:
    Path(images.files[3]).write_bytes(Path(images.files[4]).read_bytes())
    with pytest.raises(DataError, match=r"has changed since"):
        activations(backbone, images, tmp_path / "cache").prepare()
    Path(images.files[3]).unlink()
    with pytest.raises(DataError, match=images.files[3]):
        activations(backbone, images, tmp_path / "cache").prepare()


def test_rows_too_large_for_half_precision_are_refused(
    backbone: Backbone, images: ImageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = activations(backbone, images, tmp_path / "cache")
    too_large = np.full((16, *source.shape), 1e6, np.float32)
    monkeypatch.setattr(TorchEngine, "start", lambda _self, pixels: lambda: too_large[: len(pixels)])
    with pytest.raises(Exception, match="exceed the range of half precision"):
        source.prepare()


def test_rows_made_from_others_are_refused_alike(backbone: Backbone, images: ImageFiles, tmp_path: Path) -> None:
    early = activations(backbone, images, tmp_path / "cache", boundary="layer2")
    late = activations(backbone, images, tmp_path / "cache", boundary="layer3")

    class TooLarge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), *late.shape), 1e6)

    early.prepare()
    through = activations(
        backbone,
        images,
        tmp_path / "cache",
        boundary="layer3",
        source=(early, Continuation("layer2", TooLarge(), torch.float32)),
    )
    with pytest.raises(CacheError, match="exceed the range of half precision"):
        through.prepare()
