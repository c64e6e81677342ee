from __future__ import annotations

import copy
import hashlib
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import joblib
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from PIL import Image
from random_images import COLOURS, write_classes
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

import headstart as hs
from headstart.backbone.layers import Layout
from headstart.backbone.weights import random_backbone
from headstart.errors import DataError, InputError, OptionError, WeightsError
from headstart.training.fit_head import HeadData, fit_classifier
from headstart.training.recipe import Recipe

QUICK = {"image_size": 32, "device": "cpu"}


@pytest.fixture
def labelled(three_colours: Path) -> tuple[list[Path], list[str]]:
    paths = sorted(three_colours.glob("*/*.png"))
    return paths, [path.parent.name for path in paths]


def test_constructors_only_store_and_clone_works() -> None:
    for estimator in (hs.FeatureExtractor("resnet18", pool="max"), hs.ImageClassifier(balance_classes=True, seed=3)):
        copied = clone(estimator)
        assert copied.get_params() == estimator.get_params()
        assert copied is not estimator
        assert not [name for name in vars(estimator) if name.endswith("_")]
    assert hs.ImageClassifier().set_params(seed=9).seed == 9


def test_a_classifier_is_fitted_and_predicts_the_given_labels(labelled: tuple[list[Path], list[str]]) -> None:
    paths, labels = labelled
    numbers = [{"blue": 10, "green": 2, "red": 7}[label] for label in labels]
    classifier = hs.ImageClassifier(**QUICK).fit(paths[::2], numbers[::2])
    assert classifier.classes_.tolist() == [2, 7, 10]
    assert classifier.score(paths[1::2], numbers[1::2]) > 0.9
    chances = classifier.predict_proba(paths[:3])
    assert chances.shape == (3, 3)
    assert np.allclose(chances.sum(1), 1)
    assert classifier.predict(np.array([str(p) for p in paths[:1]]))[0] == 10


@pytest.mark.exhaustive
def test_pipelines_cross_validation_and_grid_search(labelled: tuple[list[Path], list[str]]) -> None:
    paths, labels = labelled
    scores = cross_val_score(hs.ImageClassifier(**QUICK), paths, labels, cv=3)
    assert scores.mean() > 0.9
    svm = make_pipeline(hs.FeatureExtractor(**QUICK), SVC())
    assert cross_val_score(svm, [str(p) for p in paths], labels, cv=3).mean() > 0.8
    search = GridSearchCV(svm, {"featureextractor__pool": ["avg", "max"]}, cv=2).fit(paths, labels)
    assert search.best_score_ > 0.8


def test_features_are_in_the_order_of_the_paths(labelled: tuple[list[Path], list[str]]) -> None:
    paths, _ = labelled
    extractor = hs.FeatureExtractor(**QUICK).fit(paths)
    features = extractor.transform(paths)
    assert features.dtype == np.float32
    assert features.shape == (len(paths), extractor.n_features_out_) == (72, len(extractor.get_feature_names_out()))
    assert np.array_equal(extractor.transform(paths[::-1]), features[::-1])


def test_every_unreadable_image_is_named_and_no_row_is_lost(labelled: tuple[list[Path], list[str]]) -> None:
    paths, labels = labelled
    paths[3].write_bytes(b"")
    paths[5].write_text("x")
    for impossible in ("a\0.png", "\ud800.png"):
        with pytest.raises(DataError, match="not a path that a file can have"):
            hs.FeatureExtractor(**QUICK).fit_transform([*paths, impossible])
    for call in (
        lambda: hs.ImageClassifier(**QUICK).fit(paths, labels),
        lambda: hs.FeatureExtractor(**QUICK).fit_transform(paths),
    ):
        with pytest.raises(DataError) as raised:
            call()
        assert paths[3].name in str(raised.value)
        assert paths[5].name in str(raised.value)


def test_wrong_use_is_a_named_error(labelled: tuple[list[Path], list[str]]) -> None:
    paths, labels = labelled
    with pytest.raises(DataError, match="72 paths and 2 labels"):
        hs.ImageClassifier(**QUICK).fit(paths, labels[:2])
    with pytest.raises(OptionError, match="effort 'quick'"):
        hs.ImageClassifier(effort="quick").fit(paths, labels)
    with pytest.raises(InputError, match="expected paths"):
        hs.FeatureExtractor(**QUICK).fit_transform([1, 2])
    with pytest.raises(InputError, match="at least two"):
        hs.ImageClassifier(**QUICK).fit(paths[:4], labels[:4])


@pytest.mark.slow
def test_a_classifier_becomes_a_model_file_and_survives_copying(
    labelled: tuple[list[Path], list[str]], tmp_path: Path
) -> None:
    paths, labels = labelled
    classifier = hs.ImageClassifier(**QUICK).fit(paths, labels)
    model = hs.load(classifier.as_model().save(tmp_path / "m.safetensors"))
    assert [p.label for p in model.predict(paths[:9])] == classifier.predict(paths[:9]).tolist()
    assert np.allclose(copy.deepcopy(classifier).predict_proba(paths[:4]), classifier.predict_proba(paths[:4]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str], dict[str, Any]]:
    """18 paths, their labels, and arguments for a network that takes a moment."""
    folder = tmp_path_factory.mktemp("small")
    paths = sorted(map(str, write_classes(folder / "data", dict.fromkeys(COLOURS, 6)).glob("*/*.png")))
    torch.save(random_backbone("test_resnet").module.state_dict(), folder / "w.pth")
    arguments = {"backbone": "test_resnet", "weights": str(folder / "w.pth"), "image_size": 32, "device": "cpu"}
    return paths, [Path(path).parent.name for path in paths], arguments


@pytest.mark.parametrize("how", ["pickle", "joblib"])
@pytest.mark.parametrize("extra", [{}, {"probe": "knn"}, {"probe": "rbf"}, {"head": "8"}, {"pool": "max"}], ids=str)
def test_fitted_estimators_are_pickled(
    small: tuple[list[str], list[str], dict[str, Any]], how: str, extra: dict[str, Any]
) -> None:
    paths, labels, arguments = small
    classifier = hs.ImageClassifier(**arguments, **extra).fit(paths, labels)
    expected = classifier.predict_proba(paths)
    if how == "pickle":
        written = pickle.dumps(classifier)
        again = pickle.loads(written)
        assert len(written) < 100_000  # neither the backbone (1.8 MB) nor what it was trained on
    else:
        file = io.BytesIO()
        joblib.dump(classifier, file)
        file.seek(0)
        again = joblib.load(file)
    assert np.array_equal(again.predict_proba(paths), expected)
    assert again.get_params() == classifier.get_params()
    fresh = clone(again)
    assert not hasattr(fresh, "head_")
    assert np.array_equal(fresh.fit(paths, labels).predict_proba(paths), expected)


def test_an_unknown_fit_is_refused_by_the_name_of_the_argument(
    small: tuple[list[str], list[str], dict[str, Any]],
) -> None:
    paths, labels, arguments = small
    for estimator in (hs.FeatureExtractor, hs.ImageClassifier):
        with pytest.raises(OptionError, match="image_fit 'stretch': expected one of auto, crop, pad, squash"):
            estimator(**arguments, image_fit="stretch").fit(paths, labels)
    pad = hs.ImageClassifier(**arguments, image_fit="pad").fit(paths, labels)
    assert pad.as_model().recipe.fit == "pad"
    assert pickle.loads(pickle.dumps(pad)).net_.backbone.preprocessing.crop_mode == "border"


def test_a_fitted_extractor_is_pickled(small: tuple[list[str], list[str], dict[str, Any]]) -> None:
    paths, _, arguments = small
    extractor = hs.FeatureExtractor(**arguments).fit(paths)
    assert np.array_equal(pickle.loads(pickle.dumps(extractor)).transform(paths), extractor.transform(paths))
    assert pickle.loads(pickle.dumps(hs.FeatureExtractor(**arguments))).get_params()["image_size"] == 32


def test_a_pickle_refuses_other_weights(small: tuple[list[str], list[str], dict[str, Any]], tmp_path: Path) -> None:
    paths, labels, arguments = small
    file = tmp_path / "w.pth"
    file.write_bytes(Path(arguments["weights"]).read_bytes())
    written = pickle.dumps(hs.ImageClassifier(**arguments | {"weights": str(file)}).fit(paths, labels))
    torch.save(random_backbone("test_resnet", seed=1).module.state_dict(), file)
    with pytest.raises(WeightsError, match="not the weights that this ImageClassifier was fitted with"):
        pickle.loads(written)


@pytest.mark.parametrize("extra", [{}, {"probe": "svm"}, {"head": "8"}], ids=str)
def test_a_refitted_estimator_is_pickled(extra: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    features = (rng.normal(size=(30, 5)) + labels[:, None]).astype(np.float32)
    fitted = fit_classifier(Recipe(**extra), HeadData(features, labels, classes=3, layout=Layout()))
    again = pickle.loads(pickle.dumps(fitted))
    learn = np.arange(20)
    one, other = fitted.refit(learn).state_dict(), again.refit(learn).state_dict()
    assert one
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("label", "words"),
    [(None, "1 of 18 labels are missing"), (float("nan"), "missing"), (pd.NA, "missing"), (3, "partly text")],
)
def test_a_label_that_is_none_is_refused(
    small: tuple[list[str], list[str], dict[str, Any]], label: object, words: str
) -> None:
    paths, labels, arguments = small
    for column in ([*labels[:-1], label], np.array([*labels[:-1], label], object), pd.Series([*labels[:-1], label])):
        with pytest.raises(ValueError, match=words):
            hs.ImageClassifier(**arguments).fit(paths, column)
    with pytest.raises(ValueError, match="missing"):
        hs.ImageClassifier(**arguments).fit(paths, np.array([1.0] * 17 + [np.nan]))


@pytest.mark.parametrize(
    "labels", ["cat", None, 3, np.linspace(0, 1, 18), np.zeros((18, 2)), ["a"] * 18, [b"a", b"b"] * 9], ids=repr
)
def test_labels_that_cannot_be_used_are_a_value_error(
    small: tuple[list[str], list[str], dict[str, Any]], labels: object
) -> None:
    paths, _, arguments = small
    with pytest.raises(ValueError, match=r"label|target y is None"):
        hs.ImageClassifier(**arguments).fit(paths, labels)


def test_paths_are_taken_from_columns_and_frames_of_one_column(
    small: tuple[list[str], list[str], dict[str, Any]],
) -> None:
    paths, labels, arguments = small
    classifier = hs.ImageClassifier(**arguments).fit(pd.DataFrame({"file": paths}), pd.Series(labels))
    expected = classifier.predict_proba(paths)
    for column in (
        pd.Series(paths),
        pd.DataFrame({"file": paths}),
        np.array(paths)[:, None],
        map(Path, paths),
        tuple(paths),
        pyarrow.array(paths),
        pyarrow.chunked_array([paths]),
    ):
        assert np.array_equal(classifier.predict_proba(column), expected)
    assert classifier.predict(paths).dtype == classifier.classes_.dtype
    numbers = pyarrow.array([sorted(COLOURS).index(label) for label in labels])
    assert hs.ImageClassifier(**arguments).fit(paths, numbers).classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ("image.png", r"got one str. Pass \[path\]"),
        (Path("image.png"), r"Pass \[path\]"),
        (b"image.png", r"Pass \[path\]"),
        ({"image.png"}, "has no order"),
        ({"path": ["image.png"]}, "has no order"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), r"table of shape \(1, 2\)"),
        (["image.png", None], "no value at position 1"),
        ([1.5], "found float at position 0"),
        (7, "got int"),
        (None, "got NoneType"),
    ],
    ids=repr,
)
def test_anything_but_a_list_of_paths_is_a_value_error(paths: object, words: str) -> None:
    for call in (
        hs.FeatureExtractor(**QUICK).fit,
        lambda given: hs.ImageClassifier(**QUICK).fit(given, ["a"]),
    ):
        with pytest.raises(ValueError, match=words):
            call(paths)


def test_no_paths_give_empty_predictions_of_the_right_type(small: tuple[list[str], list[str], dict[str, Any]]) -> None:
    paths, labels, arguments = small
    numbers = [sorted(COLOURS).index(label) for label in labels]
    for own in (labels, numbers):
        classifier = hs.ImageClassifier(**arguments).fit(paths, own)
        none = classifier.predict([])
        assert (none.shape, none.dtype) == ((0,), classifier.classes_.dtype)
        assert classifier.predict_proba([]).shape == (0, 3)
    extractor = hs.FeatureExtractor(**arguments).fit([])
    assert extractor.transform([]).shape == (0, extractor.n_features_out_)
    with pytest.raises(ValueError, match="found 0 paths"):
        hs.ImageClassifier(**arguments).fit([], [])


def test_an_integer_weight_repeats_an_image_and_zero_excludes_it(
    small: tuple[list[str], list[str], dict[str, Any]],
) -> None:
    paths, labels, arguments = small
    weights = [2.0 if i % 3 == 0 else 0.0 if i % 3 == 1 else 1.0 for i in range(len(paths))]
    often = [place for place, weight in enumerate(weights) for _ in range(int(weight))]
    one = hs.ImageClassifier(**arguments).fit(paths, labels, sample_weight=weights).predict_proba(paths)
    other = hs.ImageClassifier(**arguments).fit([paths[i] for i in often], [labels[i] for i in often])
    plain = hs.ImageClassifier(**arguments).fit(paths, labels).predict_proba(paths)
    assert np.abs(one - other.predict_proba(paths)).max() < 1e-3
    assert np.abs(one - plain).max() > 0.01


@pytest.mark.parametrize(
    "weights", [[1.0], [-1.0] * 18, [0.0] * 18, [float("nan")] * 18, ["x"] * 18, [1e308] * 18], ids=str
)
def test_weights_that_cannot_be_used_are_a_value_error(
    small: tuple[list[str], list[str], dict[str, Any]], weights: list[Any]
) -> None:
    paths, labels, arguments = small
    with pytest.raises(ValueError, match="sample_weight"):
        hs.ImageClassifier(**arguments).fit(paths, labels, sample_weight=weights)


@pytest.mark.parametrize("extra", [{"probe": "svm"}, {"probe": "knn"}, {"head": "8"}], ids=str)
def test_classifiers_without_sample_weights_raise_an_error(
    small: tuple[list[str], list[str], dict[str, Any]], extra: dict[str, Any]
) -> None:
    paths, labels, arguments = small
    with pytest.raises(OptionError, match="sample_weight: supported only by probe 'logistic' with a linear head"):
        hs.ImageClassifier(**arguments, **extra).fit(paths, labels, sample_weight=[1.0] * 18)


NEEDS_ARRAY_API = {"check_array_api_input": "needs SCIPY_ARRAY_API in the environment; paths are no tensors"}
"""scikit-learn's checks that are left out -> why. All others run, each row of their matrices as an image."""

FAST_CHECKS = {
    "check_classifiers_one_label",
    "check_classifiers_one_label_sample_weights",
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
    "check_estimator_cloneable",
    "check_estimators_pickle",
    "check_estimators_unfitted",
    "check_fit_idempotent",
    "check_get_params_invariance",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_requires_y_none",
    "check_set_params",
    "check_supervised_y_2d",
    "check_supervised_y_no_nan",
    "check_transformers_unfitted",
}


def as_images(X: Any, folder: Path) -> list[str]:
    """Each row of a matrix as an image of twelve patches."""
    paths = []
    for row in np.asarray(X, dtype=float):
        patches = np.resize((255 / (1 + np.exp(-row / 2))).astype(np.uint8), (3, 4, 3))
        path = folder / f"{hashlib.sha256(patches.tobytes()).hexdigest()}.png"
        if not path.exists():
            Image.fromarray(patches).resize((32, 32), Image.Resampling.NEAREST).save(path)
        paths.append(str(path))
    return paths


def on_matrices(kind: type, method: str) -> type:
    """A subclass that accepts matrices, as scikit-learn's checks require, and writes each row as an image.

    Args:
        kind: class of the estimator.
        method: name of the other method with a matrix argument, in addition to ``fit``.
    """
    from sklearn.utils.validation import check_is_fitted, validate_data

    def init(
        self: Any,
        *,
        device: str = "cpu",
        backbone: str = "test_resnet",
        weights: str | None = None,
        image_size: int = 32,
        folder: Path | None = None,
    ) -> None:
        kind.__init__(self, device=device, backbone=backbone, weights=weights, image_size=image_size)
        self.folder = folder

    def fit(self: Any, X: Any, y: Any = None, **more: Any) -> Any:
        return kind.fit(self, as_images(validate_data(self, X), self.folder), y, **more)

    def given(self: Any, X: Any) -> Any:
        check_is_fitted(self)
        return getattr(kind, method)(self, as_images(validate_data(self, X, reset=False), self.folder))

    def tags(self: Any) -> Any:
        own = kind.__sklearn_tags__(self)
        own.input_tags.two_d_array, own.input_tags.one_d_array, own.input_tags.string = True, False, False
        own.no_validation = False
        return own

    own = {"__init__": init, "fit": fit, method: given, "__sklearn_tags__": tags, "__module__": __name__}
    if kind is hs.ImageClassifier:  # scikit-learn detects support for sample weights by the signature

        def weighted(self: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
            return fit(self, X, y, sample_weight=sample_weight)

        own["fit"] = weighted
    return type(f"{kind.__name__}OnMatrices", (kind,), own)


ImageClassifierOnMatrices = on_matrices(hs.ImageClassifier, "predict_proba")
FeatureExtractorOnMatrices = on_matrices(hs.FeatureExtractor, "transform")


def checked(kind: type, arguments: dict[str, Any], folder: Path, keep: Callable[[str], bool]) -> set[str]:
    """Runs scikit-learn's checks of an estimator; returns the names of the checks."""
    from sklearn.utils.estimator_checks import estimator_checks_generator

    ran = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator, check in estimator_checks_generator(kind(**arguments, folder=folder)):
            name = check.func.__name__ if isinstance(check, partial) else check.__name__
            if name not in NEEDS_ARRAY_API and keep(name):
                try:
                    check(estimator)
                except SkipTest as skipped:
                    pytest.fail(f"{name} is skipped: {skipped}")
                ran.add(name)
    return ran


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ImageClassifierOnMatrices, FeatureExtractorOnMatrices])
def test_scikit_learns_quick_checks_pass(
    kind: type, small: tuple[list[str], list[str], dict[str, Any]], tmp_path: Path
) -> None:
    ran = checked(kind, small[2], tmp_path, FAST_CHECKS.__contains__)
    assert len(ran) >= 10


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [ImageClassifierOnMatrices, FeatureExtractorOnMatrices])
def test_all_of_scikit_learns_checks_pass(
    kind: type, small: tuple[list[str], list[str], dict[str, Any]], tmp_path: Path
) -> None:
    ran = checked(kind, small[2], tmp_path, lambda _: True)
    assert len(ran) >= 40
    if kind is ImageClassifierOnMatrices:
        assert ran >= {name for name in FAST_CHECKS if not name.startswith("check_transformer")}
