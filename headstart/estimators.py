"""scikit-learn's way in: a transformer from paths to features, and a classifier on paths.

Both keep scikit-learn's conventions: constructors only store, what ``fit`` learns ends in ``_``, ``clone`` and
``get_params`` work, and so do pipelines, ``cross_val_score`` and grid searches. Features are kept on disk, so the folds
of a cross-validation run the backbone once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from headstart.backbone.forward import FeatureNet, feature_shape
from headstart.backbone.layers import Layout
from headstart.backbone.pooling import Pooling
from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone
from headstart.data.scan import scan
from headstart.errors import DataError, OptionError
from headstart.features.extract import compute_features
from headstart.model import Model, data_fingerprint
from headstart.training.classifiers import fit_classifier
from headstart.training.heads import LINEAR
from headstart.training.recipe import Recipe

Paths = Sequence[str | os.PathLike[str]] | npt.NDArray[Any]


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Paths of images -> features of a frozen backbone.

    Args:
        backbone: a timm architecture; the offline default where it is not given.
        weights: a file of weights; the architecture's own where it is not given.
        image_size: side of the input in pixels; what the weights were trained with where it is not given.
        pool: "auto", "avg", "max", "avgmax", "token" or "flatten".
        cut: the boundary at which the backbone ends, as ``headstart layers`` lists it; "" for its own end.
        device: "auto", "cpu", "cuda" or "mps".

    Attributes:
        n_features_out_: D, the length of a feature vector.
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        weights: str | None = None,
        image_size: int | None = None,
        pool: str = "auto",
        cut: str = "",
        device: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.pool = pool
        self.cut = cut
        self.device = device

    def fit(self, X: Paths, y: object = None) -> Self:  # noqa: ARG002
        """Loads the backbone; learns nothing from the images.

        Raises:
            WeightsError: the weights cannot be had.
            OptionError: an argument has a value that it cannot take.
        """
        self.net_ = _net(self)
        self.n_features_out_ = feature_shape(self.net_)[0]
        return self

    def transform(self, X: Paths) -> npt.NDArray[np.float32]:
        """Gives each image's features.

        Args:
            X: N paths.

        Returns:
            (N, D) float32, row i from path i.

        Raises:
            DataError: an image cannot be read; names all of them, since no row may be missing or shifted.
        """
        check_is_fitted(self, "net_")
        return _features(self.net_, X, self.device)[0]

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[np.object_]:  # noqa: ARG002
        """D names, "feature0" and so on."""
        check_is_fitted(self, "net_")
        return np.array([f"feature{i}" for i in range(self.n_features_out_)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        return _tags_for_paths(super().__sklearn_tags__())

    def __getstate__(self) -> dict[str, Any]:
        return _without_net(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _restore_net(self)


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Paths of images and labels -> a classifier.

    Args:
        effort: "probe": everything frozen, a linear classifier on the features.
        backbone: a timm architecture; the offline default where it is not given.
        weights: a file of weights; the architecture's own where it is not given.
        image_size: side of the input in pixels; what the weights were trained with where it is not given.
        pool: "auto", "avg", "max", "avgmax", "token" or "flatten".
        cut: the boundary at which the backbone ends, as ``headstart layers`` lists it; "" for its own end.
        probe: "logistic", "svm", "rbf", "knn" or "centroid".
        head: "linear", or heads that are trained by steps, as "1024-512-0.2".
        balance: weigh the classes alike, however many images each has.
        seed: of cross-validation's folds.
        device: "auto", "cpu", "cuda" or "mps".

    Attributes:
        classes_: the labels, sorted, as they were given.
        fitted_: the classifier on the features and how it was come by.
    """

    def __init__(
        self,
        effort: str = "probe",
        *,
        backbone: str = DEFAULT_BACKBONE,
        weights: str | None = None,
        image_size: int | None = None,
        pool: str = "auto",
        cut: str = "",
        probe: str = "logistic",
        head: str = LINEAR,
        balance: bool = False,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.effort = effort
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.pool = pool
        self.cut = cut
        self.probe = probe
        self.head = head
        self.balance = balance
        self.seed = seed
        self.device = device

    def fit(self, X: Paths, y: Sequence[Any] | npt.NDArray[Any]) -> Self:
        """Trains on N paths and N labels.

        Raises:
            DataError: an image cannot be read (all of them are named), or there are fewer than two classes.
            WeightsError: the weights cannot be had.
            OptionError: an argument has a value that it cannot take.
        """
        recipe = self._recipe()
        if recipe.effort != "probe":
            raise OptionError(f"effort {recipe.effort!r}: ImageClassifier knows 'probe'; headstart.train fine-tunes.")
        labels = np.asarray(y)
        if labels.ndim != 1:
            raise DataError(
                f"labels of shape {labels.shape}: expected one for each path. headstart.train takes a table with any "
                "number of labels to an image."
            )
        if len(labels) != len(X):
            raise DataError(f"{len(X)} paths and {len(labels)} labels: expected one label for each path.")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        self.net_ = _net(self)
        features, keys = _features(self.net_, X, self.device)
        self.fitted_ = fit_classifier(
            recipe,
            features,
            numbers.astype(np.int64),
            classes=len(self.classes_),
            layout=Layout.of(self.net_.backbone.module),
        )
        self.data_sha256_ = data_fingerprint(keys, [str(label) for label in labels])
        return self

    def predict_proba(self, X: Paths) -> npt.NDArray[np.float64]:
        """(N, classes) float64 for N paths, in the order of ``classes_``; rows sum to 1.

        Raises:
            DataError: an image cannot be read; names all of them.
        """
        check_is_fitted(self, "fitted_")
        return self.as_model().probabilities(_features(self.net_, X, self.device)[0])

    def predict(self, X: Paths) -> npt.NDArray[Any]:
        """N labels for N paths.

        Raises:
            DataError: an image cannot be read; names all of them.
        """
        return cast(npt.NDArray[Any], self.classes_[self.predict_proba(X).argmax(axis=1)])

    def as_model(self) -> Model:
        """The same classifier as a ``Model``, to save and to ship; its classes are names."""
        check_is_fitted(self, "fitted_")
        return Model(
            self.net_,
            self.fitted_.head,
            [str(label) for label in self.classes_],
            recipe=self._recipe(),
            data={"train_sha256": self.data_sha256_},
            scores={},
        )

    def _recipe(self) -> Recipe:
        return Recipe(
            effort=cast(Any, self.effort),
            backbone=self.backbone,
            weights=self.weights or "",
            image_size=self.image_size or 0,
            pool=cast(Any, self.pool),
            cut=self.cut,
            probe=cast(Any, self.probe),
            head=self.head,
            balance=self.balance,
            seed=self.seed,
        )

    def __sklearn_tags__(self) -> Tags:
        return _tags_for_paths(super().__sklearn_tags__())

    def __getstate__(self) -> dict[str, Any]:
        return _without_net(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _restore_net(self)


def _net(estimator: FeatureExtractor | ImageClassifier) -> FeatureNet:
    backbone = load_backbone(
        estimator.backbone, weights=estimator.weights or None, image_size=estimator.image_size or None
    )
    return FeatureNet(backbone, pool=_pooling(estimator), cut=estimator.cut)


def _pooling(estimator: FeatureExtractor | ImageClassifier) -> Pooling:
    return estimator._recipe().pooling if isinstance(estimator, ImageClassifier) else cast(Any, estimator.pool)


def _without_net(state: dict[str, Any]) -> dict[str, Any]:
    """What is copied to worker processes: they load the backbone themselves."""
    return {name: value for name, value in state.items() if name != "net_"} | {"_had_net": "net_" in state}


def _restore_net(estimator: Any) -> None:
    if estimator.__dict__.pop("_had_net", False):
        estimator.net_ = _net(estimator)


def _features(net: FeatureNet, paths: Paths, device: str) -> tuple[npt.NDArray[np.float32], list[bytes]]:
    names = _as_paths(paths)
    scanned = scan(names, preprocessing=net.backbone.preprocessing)
    if scanned.faults:
        listed = "; ".join(f"{names[i]}: {reason}" for i, reason in list(scanned.faults.items())[:10])
        more = f"; and {len(scanned.faults) - 10} more" if len(scanned.faults) > 10 else ""
        raise DataError(f"{len(scanned.faults)} of {len(names)} images cannot be read: {listed}{more}. Leave them out.")
    return compute_features(net, scanned.keys, device=device).read(scanned.keys), scanned.keys


def _as_paths(paths: Paths) -> list[str]:
    items = list(paths.ravel()) if isinstance(paths, np.ndarray) else list(paths)
    strange = next((item for item in items if not isinstance(item, (str, os.PathLike))), None)
    if strange is not None:
        raise OptionError(f"expected paths of images, found {type(strange).__name__}.")
    return [os.fspath(item) for item in items]


def _tags_for_paths(tags: Tags) -> Tags:
    tags.input_tags.two_d_array = False
    tags.input_tags.one_d_array = True
    tags.input_tags.string = True
    tags.no_validation = True
    return tags
