"""scikit-learn estimators: a transformer from image paths to features, and a classifier on image paths.

Both follow scikit-learn's conventions: constructors only store, fitted attributes end in ``_``, and ``clone``,
``get_params``, pipelines, ``cross_val_score``, grid searches and ``pickle`` work. Features are cached on disk, so
cross-validation computes them once for all folds.

A pickle contains the fitted attributes without the backbone. Unpickling loads the backbone again; it raises an error if
its weights have changed. To move a classifier to another machine, save ``ImageClassifier.as_model()``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Self, cast, get_args

import numpy as np
import numpy.typing as npt

from headstart.deferred_compiler import compiler_deferred
from headstart.import_effects import restored_after_import

with (
    restored_after_import(),
    compiler_deferred(),
):  # a public module, so users import it directly, not through a lazy name
    import huggingface_hub  # noqa: F401
    import timm  # noqa: F401
    from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
    from sklearn.exceptions import DataConversionWarning
    from sklearn.utils import Tags
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted

    from headstart.training.fit_head import HeadData, fit_classifier

from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.layers import Layout
from headstart.backbone.pixel_net import FeatureNet, feature_shape
from headstart.backbone.pooling import Pooling
from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone
from headstart.data.fingerprint import data_fingerprint
from headstart.data.preprocessing import Fit
from headstart.data.scan import scan
from headstart.errors import DataError, InputError, OptionError, WeightsError, first_line
from headstart.features.extract import compute_features
from headstart.model import Model
from headstart.training.head_spec import LINEAR
from headstart.training.recipe import Recipe

MAX_TOTAL_WEIGHT = 1e15
"""Largest sum of sample weights; products of larger ones overflow."""

Paths = Sequence[str | os.PathLike[str]] | npt.NDArray[Any]
"""N paths of images: a list, an array, a data frame column, or a data frame of one column."""


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """scikit-learn transformer: paths of N images -> (N, D) features of a frozen backbone.

    Args:
        backbone: name of a timm architecture; by default the backbone that works offline.
        weights: a weights file; None for the pretrained weights of the architecture.
        image_size: input height and width in pixels; None for the size that the weights were trained with.
        image_fit: how an image is fitted into the input: "auto" (as the weights were trained), "crop", "pad" or
            "squash". It is the option ``fit`` of a recipe; here, ``fit`` is a method.
        pool: "auto", "avg", "max", "avgmax", "token" or "flatten".
        cut: layer boundary to take the features from, as listed by ``headstart layers``; "" for the last layer.
        accept_license: whether weights may be used whose licence is restricted.
        device: "auto", "cpu", "cuda" or "mps".

    Attributes:
        n_features_out_: D, the length of a feature vector.

    Examples:
        >>> paths = ["rose.jpg", "tulip.jpg"]
        >>> features = hs.FeatureExtractor().fit_transform(paths)
        >>> features.shape, features.dtype
        ((2, 1280), dtype('float32'))
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        weights: str | None = None,
        image_size: int | None = None,
        image_fit: str = "auto",
        pool: str = "auto",
        cut: str = "",
        accept_license: bool = False,
        device: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.image_fit = image_fit
        self.pool = pool
        self.cut = cut
        self.accept_license = accept_license
        self.device = device

    def fit(self, X: Paths, y: object = None) -> Self:  # noqa: ARG002
        """Loads the backbone; the images do not change it.

        Raises:
            InputError: ``X`` is not a list of paths.
            WeightsError: the weights cannot be loaded.
            LicenseError: the licence of the weights is restricted, and was not accepted.
            OptionError: a constructor argument is invalid.
        """
        _as_paths(X)
        self.net_ = _net(self)
        self.n_features_out_ = feature_shape(self.net_)[0]
        return self

    def transform(self, X: Paths) -> npt.NDArray[np.float32]:
        """Computes the features of each image.

        Args:
            X: N paths.

        Returns:
            (N, D) float32, row i from path i.

        Raises:
            InputError: ``X`` is not a list of paths.
            DataError: images cannot be read; the message lists them.
        """
        check_is_fitted(self, "net_")
        return _features(self.net_, _as_paths(X), self.device)[0]

    def __sklearn_tags__(self) -> Tags:
        tags = _tags_for_paths(super().__sklearn_tags__())
        tags.transformer_tags.preserves_dtype = []  # float32 always
        return tags

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[np.object_]:  # noqa: ARG002
        """D names: "feature0", "feature1", ..."""
        check_is_fitted(self, "net_")
        return np.array([f"feature{i}" for i in range(self.n_features_out_)], dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        return _without_net(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _restore_net(self)


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """scikit-learn classifier on paths of images: a classifier on features of a frozen backbone.

    Args:
        effort: "probe", the only effort supported here; to fine-tune the backbone, use ``train``.
        backbone: name of a timm architecture; by default the backbone that works offline.
        weights: a weights file; None for the pretrained weights of the architecture.
        image_size: input height and width in pixels; None for the size that the weights were trained with.
        image_fit: how an image is fitted into the input: "auto" (as the weights were trained), "crop", "pad" or
            "squash". It is the option ``fit`` of a recipe; here, ``fit`` is a method.
        pool: "auto", "avg", "max", "avgmax", "token" or "flatten".
        cut: layer boundary to take the features from, as listed by ``headstart layers``; "" for the last layer.
        accept_license: whether weights may be used whose licence is restricted.
        probe: "logistic", "svm", "rbf", "knn" or "centroid".
        head: "linear", or a head trained by gradient descent, such as "1024-512-0.2".
        balance_classes: weight each class equally, regardless of its number of images.
        seed: random seed of the cross-validation folds.
        device: "auto", "cpu", "cuda" or "mps".

    Attributes:
        classes_: the distinct labels, sorted.
        head_: (N, D) features -> (N, classes) logits, a PyTorch module.
        settings_: chosen hyperparameters, such as "C", with the reason under "reason".

    Examples:
        >>> paths = ["flowers/roses/0.jpg", "flowers/roses/1.jpg", "flowers/tulips/0.jpg", "flowers/tulips/1.jpg"]
        >>> classifier = hs.ImageClassifier().fit(paths, ["roses", "roses", "tulips", "tulips"])
        >>> classifier.predict(["rose.jpg"])
        array(['roses'], dtype='<U6')
    """

    def __init__(
        self,
        effort: str = "probe",
        *,
        backbone: str = DEFAULT_BACKBONE,
        weights: str | None = None,
        image_size: int | None = None,
        image_fit: str = "auto",
        pool: str = "auto",
        cut: str = "",
        accept_license: bool = False,
        probe: str = "logistic",
        head: str = LINEAR,
        balance_classes: bool = False,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.effort = effort
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.image_fit = image_fit
        self.pool = pool
        self.cut = cut
        self.accept_license = accept_license
        self.probe = probe
        self.head = head
        self.balance_classes = balance_classes
        self.seed = seed
        self.device = device

    def fit(
        self,
        X: Paths,
        y: Sequence[Any] | npt.NDArray[Any],
        sample_weight: Sequence[float] | npt.NDArray[Any] | None = None,
    ) -> Self:
        """Fits the classifier to N paths and N labels.

        Args:
            X: N paths.
            y: N labels, either all strings, or all integers or booleans.
            sample_weight: N weights of at least 0, for ``probe="logistic"`` with a linear head. As in scikit-learn, a
                weight of 2 is equivalent to the same image twice, and a weight of 0 excludes the image.

        Raises:
            InputError: ``X``, ``y`` or ``sample_weight`` cannot be used, or there are fewer than two classes.
            DataError: images cannot be read; the message lists them.
            WeightsError: the weights cannot be loaded.
            LicenseError: the licence of the weights is restricted, and was not accepted.
            OptionError: a constructor argument is invalid.
        """
        recipe = self._recipe()
        if recipe.effort != "probe":
            raise OptionError(
                f"effort {recipe.effort!r}: ImageClassifier supports only 'probe'. To fine-tune, use headstart.train."
            )
        names, labels = _as_paths(X), _as_labels(y)
        if len(labels) != len(names):
            raise InputError(f"{len(names)} paths and {len(labels)} labels: expected one label for each path.")
        if not names:
            raise InputError("found 0 paths: expected at least two images, of two classes.")
        weights = _as_weights(sample_weight, len(names))
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        counted = slice(None) if weights is None else weights > 0
        if len(np.unique(numbers[counted])) < 2:
            which = "labels" if weights is None else "images with a sample_weight above 0"
            raise InputError(f"{which} of 1 class ({labels[counted][0]}): a classifier needs at least two classes.")
        self.net_ = _net(self)
        features, keys = _features(self.net_, names, self.device)
        data = HeadData(
            features[counted],
            numbers.astype(np.int64)[counted],
            classes=len(self.classes_),
            layout=Layout.of(self.net_.backbone.module),
            sample_weight=None if weights is None else weights[counted],
        )
        fitted = fit_classifier(recipe, data)
        self.head_, self.settings_ = fitted.head, fitted.settings
        self.data_sha256_ = data_fingerprint(keys, [str(label) for label in labels])
        return self

    def predict_proba(self, X: Paths) -> npt.NDArray[np.float64]:
        """Predicts probabilities: (N, classes) float64 for N paths, in the order of ``classes_``; rows sum to 1.

        Raises:
            InputError: ``X`` is not a list of paths.
            DataError: images cannot be read; the message lists them.
        """
        check_is_fitted(self, "head_")
        return self.as_model().probabilities(_features(self.net_, _as_paths(X), self.device)[0])

    def predict(self, X: Paths) -> npt.NDArray[Any]:
        """Predicts N labels for N paths, with the dtype of ``classes_``.

        Raises:
            InputError: ``X`` is not a list of paths.
            DataError: images cannot be read; the message lists them.
        """
        probabilities = self.predict_proba(X)
        return cast(npt.NDArray[Any], self.classes_[probabilities.argmax(axis=1)])

    def as_model(self) -> Model:
        """The fitted classifier as a ``Model``, which can be saved and exported; labels become strings."""
        check_is_fitted(self, "head_")
        return Model(
            self.net_,
            self.head_,
            [str(label) for label in self.classes_],
            recipe=self._recipe(),
            data={"train_sha256": self.data_sha256_},
            scores={},
        )

    def _recipe(self) -> Recipe:
        return Recipe(
            effort=cast(Any, self.effort),
            backbone=self.backbone or None,
            weights=self.weights or None,
            image_size=self.image_size or None,
            fit=_fit_of(self),
            pool=cast(Any, self.pool),
            cut=self.cut or None,
            accept_license=self.accept_license,
            probe=cast(Any, self.probe),
            head=self.head,
            balance_classes=self.balance_classes,
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
        estimator.backbone,
        weights=estimator.weights or None,
        image_size=estimator.image_size or None,
        fit=_fit_of(estimator),
        accept_license=estimator.accept_license,
    )
    return FeatureNet(backbone, FeatureSpec(_pooling(estimator), estimator.cut))


def _fit_of(estimator: FeatureExtractor | ImageClassifier) -> Fit:
    if estimator.image_fit not in get_args(Fit):
        raise OptionError(f"image_fit {estimator.image_fit!r}: expected one of {', '.join(get_args(Fit))}.")
    return cast(Fit, estimator.image_fit)


def _pooling(estimator: FeatureExtractor | ImageClassifier) -> Pooling:
    return estimator._recipe().pooling if isinstance(estimator, ImageClassifier) else cast(Any, estimator.pool)


def _without_net(state: dict[str, Any]) -> dict[str, Any]:
    """The state to pickle: the fingerprint of the backbone instead of the backbone."""
    attributes = {name: value for name, value in state.items() if name != "net_"}
    return attributes | {"_backbone": state["net_"].backbone.fingerprint} if "net_" in state else attributes


def _restore_net(estimator: Any) -> None:
    """Loads the backbone of an unpickled estimator.

    Raises:
        WeightsError: the weights cannot be loaded, or differ from those that the estimator was fitted with.
    """
    expected = estimator.__dict__.pop("_backbone", None)
    if expected is None:
        return
    net = _net(estimator)
    if net.backbone.fingerprint != expected:
        raise WeightsError(
            f"{estimator.weights or net.backbone.source}: these are not the weights that this "
            f"{type(estimator).__name__} was fitted with. Restore them, or fit it again."
        )
    estimator.net_ = net


def _features(net: FeatureNet, names: list[str], device: str) -> tuple[npt.NDArray[np.float32], list[bytes]]:
    if not names:
        return np.empty((0, *feature_shape(net)), np.float32), []
    scanned = scan(names, preprocessing=net.backbone.preprocessing)
    if scanned.faults:
        listed = "; ".join(f"{names[i]}: {reason}" for i, reason in list(scanned.faults.items())[:10])
        more = f"; and {len(scanned.faults) - 10} more" if len(scanned.faults) > 10 else ""
        raise DataError(f"{len(scanned.faults)} of {len(names)} images cannot be read: {listed}{more}. Leave them out.")
    sources = dict(zip(scanned.keys, names, strict=True))
    return compute_features(net, scanned.keys, sources=sources, device=device).read(scanned.keys), scanned.keys


def _as_paths(X: Any) -> list[str]:
    """Validates paths and returns them as N strings.

    Raises:
        InputError: ``X`` is not a list, an array or a column, or an item is not a path.
    """
    if isinstance(X, (str, bytes, os.PathLike)):
        raise InputError(f"expected a list of paths, got one {type(X).__name__}. Pass [path].")
    if isinstance(X, (Mapping, Set)):
        raise InputError(f"expected a list of paths, got a {type(X).__name__}, which has no order.")
    X = _as_array(X)
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise InputError(f"expected a list of paths, got a table of shape {X.shape}. Pass its column of paths.")
    if not isinstance(X, Iterable):
        raise InputError(f"expected a list of paths, got {type(X).__name__}.")
    items = list(X)
    for place, item in enumerate(items):
        if not isinstance(item, (str, os.PathLike)):
            found = "no value" if _is_missing(item) else type(item).__name__
            raise InputError(f"expected paths of images, found {found} at position {place}.")
    return [os.fspath(item) for item in items]


def _as_array(column: Any) -> Any:
    """A data frame column or array-like as a numpy array, one of Arrow as a list; other values unchanged."""
    if hasattr(column, "to_pylist"):  # its to_numpy refuses texts
        return column.to_pylist()
    if hasattr(column, "to_numpy"):
        return column.to_numpy()
    return np.asarray(column) if hasattr(column, "__array__") else column


def _as_labels(y: Any) -> npt.NDArray[Any]:
    """Validates labels and returns them as an array of shape (N,).

    Raises:
        InputError: ``y`` is not a list, an array or a column; a label is missing or fractional; or labels are partly
            text and partly numbers.
    """
    if y is None:
        raise InputError("ImageClassifier requires y to be passed, but the target y is None.")
    values = _as_array(y)
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise InputError(f"expected a list of labels, got {type(y).__name__}.")
    items = values if isinstance(values, np.ndarray) else np.array(list(values), dtype=object)
    if items.ndim == 2 and items.shape[1] == 1:
        text = f"A column-vector y was passed when a 1d array was expected, one label for each of {len(items)} paths."
        warnings.warn(text, DataConversionWarning, stacklevel=3)
        items = items[:, 0]
    if items.ndim != 1:
        raise InputError(
            f"labels of shape {items.shape}: expected one for each path. For several labels per image, use "
            "headstart.train with a table."
        )
    missing = [place for place, item in enumerate(items.tolist()) if _is_missing(item)]
    if missing:
        where = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"{len(missing)} of {len(items)} labels are missing (None or NaN), at {where}. Leave them out."
        )
    kinds = {"text" if isinstance(item, str) else "numbers" for item in items.tolist()}
    if len(kinds) > 1:
        raise InputError(
            "labels are partly text and partly numbers. Convert every label to text, for example with map(str, labels)."
        )
    labels = items if isinstance(values, np.ndarray) else np.asarray(items.tolist())
    try:
        check_classification_targets(labels)
    except (ValueError, TypeError) as error:
        raise InputError(f"labels: {first_line(error).rstrip('.')}.") from error
    return labels


def _as_weights(sample_weight: Any, count: int) -> npt.NDArray[np.float64] | None:
    """Validates sample weights and returns them as (N,) float64; None for None.

    Raises:
        InputError: not N numbers of at least 0 with a sum up to ``MAX_TOTAL_WEIGHT``, or all are 0.
    """
    if sample_weight is None:
        return None
    try:
        weights = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"sample_weight: expected a number for each path ({first_line(error)}).") from error
    if weights.shape != (count,):
        raise InputError(f"sample_weight of shape {weights.shape}: expected ({count},), a number for each path.")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise InputError("sample_weight: expected finite weights of zero or more, at least one above zero.")
    if float(weights.max()) * len(weights) > MAX_TOTAL_WEIGHT:
        raise InputError(f"sample_weight: up to {weights.max():g}; expected a sum of at most {MAX_TOTAL_WEIGHT:g}.")
    return weights


def _is_missing(item: Any) -> bool:
    """Whether a value is None, NaN, NaT or pandas.NA."""
    if item is None:
        return True
    try:
        return bool(item != item)
    except (TypeError, ValueError):  # the truth value of pandas.NA is undefined
        return type(item).__name__ == "NAType"


def _tags_for_paths(tags: Tags) -> Tags:
    tags.input_tags.two_d_array = False
    tags.input_tags.one_d_array = True
    tags.input_tags.string = True
    tags.no_validation = True
    return tags
