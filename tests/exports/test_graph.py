"""The graph that is exported, before it is: what follows decoding is all in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import shown, small_model

from headstart.backbone.layers import Layout
from headstart.exports.graph import ExportGraph, OutlierScore
from headstart.trust.ood import make_ood_detector

KINDS = {
    "linear": {"ood_detector": True},
    "two classes, one logit": {"head": "single"},
    "hidden layers, cut": {"head": "8-0.5", "cut": "layer3", "pool": "avgmax", "ood_detector": True},
    "a convolution on the map": {"head": "conv6-flatten", "cut": "layer2", "pool": "none", "ood_detector": True},
    "a kernel": {"head": "rbf"},
    "nearest neighbours": {"head": "neighbours"},
    "several labels": {"several": True, "ood_detector": True},
    "tokens": {"architecture": "test_vit", "ood_detector": True},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_raw_pixels_get_what_examine_gives(kind: str) -> None:
    model = small_model(**KINDS[kind])
    images = [np.array(shown(1000 + i).resize(size)) for i, size in enumerate([(48, 40), (200, 190), (31, 37)])]
    chances, outliers, _ = model.predict_with_outliers(images)
    assert np.ptp(chances, axis=0).max() > 0.02  # otherwise predictions could not be distinguished
    graph = ExportGraph(model)
    for image, chance, outlier in zip(images, chances, outliers, strict=True):
        first, *others = graph(torch.from_numpy(image)[None])
        assert np.abs(first[0].numpy() - chance).max() < 1e-4
        assert bool(others) == (model.ood_detector is not None)
        if others:
            assert others[0][0].item() == pytest.approx(outlier, abs=0.04)  # one of 64 usual images more or less


def test_images_whose_distances_are_stored_get_their_outlier_scores() -> None:
    """Such as validation images: rounding alone makes one of 25 farther than itself, and changes its rank."""
    vectors = np.random.default_rng(3).normal(size=(900, 64)).astype(np.float32)
    references, held_out = vectors[:600], vectors[600:]
    detector = make_ood_detector(references)
    assert detector is not None
    detector = detector.with_inlier_distances(detector.distances(held_out))
    assert detector is not None
    scores = OutlierScore(detector, Layout())(torch.from_numpy(held_out))
    other_rank = np.abs(scores.numpy() - detector.outlier_scores(held_out)) > 1e-4
    assert other_rank.sum() <= 2  # of 300; pairs of images whose distances differ by less than 1e-6
