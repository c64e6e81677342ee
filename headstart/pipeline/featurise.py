"""Step 4 of a run: the frozen pass. Features of every image, and activations at the deepest freeze boundary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import ActivationNet, TappedNet, feature_shape, split_backbone
from headstart.backbone.split import INPUT, Boundary
from headstart.cache.row_store import RowStore
from headstart.engine.interface import Identity
from headstart.features.activations import ImageFiles, activation_store
from headstart.features.extract import FeatureStore, Tap, compute_features
from headstart.pipeline.inspect_images import Inspected
from headstart.pipeline.load import Job, Loaded
from headstart.pipeline.plan import Planned
from headstart.training.heads import vectors_of
from headstart.training.losses import Labels


@dataclass(frozen=True)
class LabelledFeatures:
    """Images with labels and features.

    Attributes:
        images: paths and content hashes of N images.
        labels: see ``training.losses``.
        features: (N, D) float32, or their maps.
    """

    images: ImageFiles
    labels: Labels
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Featurised:
    """Features of a run's images.

    Attributes:
        train: of the training images, by the fast engine.
        val: of the validation images, by the exact engine; None where there are none.
        held_out: where the features of all images but the training images are stored, by the exact engine.
    """

    train: LabelledFeatures
    val: LabelledFeatures | None
    held_out: FeatureStore


def featurise(job: Job, loaded: Loaded, inspected: Inspected, planned: Planned) -> Featurised:
    """Runs the backbone over every image whose features are not cached yet."""
    held_out_keys = [key for name in inspected.held_out for key in inspected.keys[name]]
    learnt = frozen_features(job, loaded, inspected, planned, inspected.keys["train"], exact=False)
    held_out = frozen_features(job, loaded, inspected, planned, held_out_keys, exact=True)
    val = _labelled(inspected, "val", held_out) if inspected.keys.get("val") else None
    return Featurised(_labelled(inspected, "train", learnt), val, held_out)


def frozen_features(
    job: Job, loaded: Loaded, inspected: Inspected, planned: Planned, keys: list[bytes], *, exact: bool
) -> FeatureStore:
    """The store that holds the features of some images, which are computed where they are missing.

    Args:
        job: see ``Job``.
        loaded: the backbone.
        inspected: knows the files of the keys.
        planned: the engines, and the rungs for whose activations the pass is tapped.
        keys: content hashes.
        exact: use the engine for predictions; the fast engine is for training images.
    """
    tap = None
    if planned.rungs and loaded.splittable is not None:
        tap = tap_at(planned.rungs[-1].boundary, loaded, cache=job.cache)
    return compute_features(
        loaded.net,
        keys,
        sources=inspected.files,
        engines=planned.engines,
        sample=planned.sample,
        exact=exact,
        tap=tap,
        device=job.device,
        cache=job.cache,
        progress=job.progress,
    )


def tap_at(boundary: Boundary, loaded: Loaded, *, cache: Path | None) -> Tap | None:
    """What stores activations at a boundary of ``loaded.splittable`` while features are computed; None at the input."""
    if boundary.name == INPUT or loaded.splittable is None:
        return None
    backbone, whole = loaded.backbone, split_backbone(loaded.backbone, loaded.net.spec)
    net = ActivationNet(backbone, boundary.name, loaded.splittable.prefix(boundary.name))

    def store(identity: Identity) -> RowStore:
        return activation_store(net, boundary.shape, identity=identity, cache=cache)

    return Tap(
        TappedNet(backbone, boundary.name, whole.tapped(boundary.name, values=len(boundary.value_shapes))), store
    )


def feature_rows(
    job: Job, loaded: Loaded, inspected: Inspected, planned: Planned, keys: list[bytes], *, exact: bool
) -> npt.NDArray[np.float32]:
    """(N, D) float32 features of some images, also of none; arguments as ``frozen_features``."""
    if not keys:
        return np.empty((0, *feature_shape(loaded.net)), np.float32)
    return frozen_features(job, loaded, inspected, planned, keys, exact=exact).read(keys)


@dataclass(frozen=True)
class ImageVectors:
    """One vector for each image, of all splits.

    Attributes:
        positions: in the data set, those of train first.
        splits: of each image.
        vectors: (N, D) float32 by the frozen backbone.
    """

    positions: list[int]
    splits: list[str]
    vectors: npt.NDArray[np.float32]


def image_vectors(loaded: Loaded, inspected: Inspected, featurised: Featurised) -> ImageVectors:
    """The features of all images as vectors: what the map and the label check compare."""
    names = ["train", *inspected.held_out]
    keys = [key for name in inspected.held_out for key in inspected.keys[name]]
    features = np.concatenate([featurised.train.features, featurised.held_out.read(keys)])
    places = [(i, name) for name in names for i in inspected.positions[name]]
    vectors = vectors_of(features, Layout.of(loaded.backbone.module))
    return ImageVectors([i for i, _ in places], [name for _, name in places], vectors)


def _labelled(inspected: Inspected, name: str, features: FeatureStore) -> LabelledFeatures:
    files, positions = inspected.dataset.files(), inspected.positions[name]
    images = ImageFiles([files[i] for i in positions], inspected.keys[name])
    return LabelledFeatures(images, inspected.dataset.labels[positions], features.read(inspected.keys[name]))
