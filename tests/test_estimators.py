from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

import headstart as hs
from headstart.errors import DataError, OptionError

QUICK = {"image_size": 32, "device": "cpu"}


@pytest.fixture
def labelled(three_colours: Path) -> tuple[list[Path], list[str]]:
    paths = sorted(three_colours.glob("*/*.png"))
    return paths, [path.parent.name for path in paths]


def test_constructors_only_store_and_clone_works() -> None:
    for estimator in (hs.FeatureExtractor("resnet18", pool="max"), hs.ImageClassifier(balance=True, seed=3)):
        copied = clone(estimator)
        assert copied.get_params() == estimator.get_params()
        assert copied is not estimator
        assert not [name for name in vars(estimator) if name.endswith("_")]
    assert hs.ImageClassifier().set_params(seed=9).seed == 9


def test_a_classifier_learns_scores_and_speaks_the_users_labels(labelled: tuple[list[Path], list[str]]) -> None:
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


def test_features_stand_in_the_order_of_the_paths(labelled: tuple[list[Path], list[str]]) -> None:
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
    with pytest.raises(OptionError, match="expected paths"):
        hs.FeatureExtractor(**QUICK).fit_transform([1, 2])
    with pytest.raises(DataError, match="at least two"):
        hs.ImageClassifier(**QUICK).fit(paths[:4], labels[:4])


def test_a_classifier_becomes_a_model_file_and_survives_copying(
    labelled: tuple[list[Path], list[str]], tmp_path: Path
) -> None:
    paths, labels = labelled
    classifier = hs.ImageClassifier(**QUICK).fit(paths, labels)
    model = hs.load(classifier.as_model().save(tmp_path / "m.safetensors"))
    assert [p.label for p in model.predict(paths[:9])] == classifier.predict(paths[:9]).tolist()
    assert np.allclose(copy.deepcopy(classifier).predict_proba(paths[:4]), classifier.predict_proba(paths[:4]))
