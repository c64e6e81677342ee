from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recorded_progress import RecordedProgress
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headstart.errors import DataError
from headstart.training import linear_fits, probe
from headstart.training.penalty import C_GRID, C_WITHOUT_CHOICE, FOLDS
from headstart.training.probe import fit_probe, floored, refit_probe


def some_data(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_classification(
        count, 30, n_informative=12, n_classes=classes, n_clusters_per_class=1, class_sep=0.9, random_state=seed
    )
    x = x * np.linspace(2, 50, 30) + np.linspace(-9, 9, 30)
    return x.astype(np.float32), y.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_folding_the_standardisation_in_changes_no_probability(classes: int) -> None:
    x, y = some_data(300, classes)
    fitted = fit_probe(x, y, classes=classes)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.c, max_iter=5000, tol=1e-6)).fit(x, y)
    logits = x @ fitted.weight.T + fitted.bias
    odds = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(odds / odds.sum(1, keepdims=True), reference.predict_proba(x), atol=5e-3)
    assert fitted.weight.shape == (classes, 30)


def test_c_is_the_one_with_the_least_loss_over_the_folds() -> None:
    x, y = some_data(400, 3)
    fitted = fit_probe(x, y, classes=3)
    assert C_GRID[: len(fitted.losses)] == tuple(fitted.losses)
    assert fitted.c == min(fitted.losses, key=lambda c: fitted.losses[c])
    assert len(set(fitted.losses.values())) == len(fitted.losses) > 2  # each C was truly fitted
    assert "5-fold" in fitted.reason


def test_c_is_chosen_without_dividing_groups() -> None:
    """Each group is one scene: whoever saw one of its images knows the label of the others."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 10)
    x = (rng.normal(size=(40, 60))[group] + 0.05 * rng.normal(size=(400, 60))).astype(np.float32)
    y = rng.integers(0, 2, 40)[group]
    torn, apart = fit_probe(x, y, classes=2), fit_probe(x, y, classes=2, together=group)
    assert min(torn.losses.values()) < 0.1
    assert min(apart.losses.values()) > 0.6
    assert apart.c < torn.c


@pytest.mark.slow
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_folds_are_fitted_as_scikit_learn_would(
    classes: int, balance: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = some_data(400, classes)
    keep = np.r_[np.flatnonzero(y != 0), np.flatnonzero(y == 0)[:30]]
    x, y = x[keep], y[keep]
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=3).split(x, y))
    scaled = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    found = fit_probe(x, y, classes=classes, balance=balance, seed=3).losses
    for c, loss in found.items():
        regression = LogisticRegression(C=c, tol=1e-4, max_iter=1000, class_weight="balanced" if balance else None)
        own = [
            log_loss(y[judge], regression.fit(scaled[learn], y[learn]).predict_proba(scaled[judge]))
            for learn, judge in folds
        ]
        assert loss == pytest.approx(np.mean(own), rel=5e-3)
    monkeypatch.setattr(linear_fits, "WEIGHTS_AT_ONCE", 1)  # one fold after the other
    alone = fit_probe(x, y, classes=classes, balance=balance, seed=3).losses
    assert alone == pytest.approx(found, rel=5e-3)


@pytest.mark.parametrize("balance", [False, True])
def test_weights_of_images_count_as_in_scikit_learn(balance: bool) -> None:
    x, y = some_data(400, 3)
    weights = np.random.default_rng(1).uniform(0.2, 3, len(y))
    found = fit_probe(x, y, classes=3, balance=balance, sample_weight=weights, seed=3)
    mean = np.average(x, axis=0, weights=weights)
    scaled = ((x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))).astype(np.float32)

    def fit(learn: np.ndarray, c: float) -> LogisticRegression:
        own = weights[learn].copy()
        if balance:
            own *= (own.sum() / (3 * np.bincount(y[learn], weights=own)))[y[learn]]
        return LogisticRegression(C=c, max_iter=1000).fit(scaled[learn], y[learn], sample_weight=own)

    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=3).split(x, y))
    for c, loss in found.losses.items():
        if c > found.c:  # hardly penalised: both stop short of the minimum
            continue
        own = [
            log_loss(y[judge], fit(learn, c).predict_proba(scaled[judge]), sample_weight=weights[judge])
            for learn, judge in folds
        ]
        assert loss == pytest.approx(np.mean(own), rel=5e-3)
    chances = fit(np.arange(len(y)), found.c).predict_proba(scaled)
    logits = x @ found.weight.T + found.bias
    ours = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(ours - chances).max() < 1e-3


def test_a_small_set_gets_the_stated_rule() -> None:
    x, y = some_data(40, 2)
    fitted = fit_probe(x, y, classes=2)
    assert fitted.c == C_WITHOUT_CHOICE
    assert "40 training images" in fitted.reason


@pytest.mark.parametrize("rare", [1, 3])
def test_a_class_of_few_images_does_not_keep_c_from_being_chosen(rare: int) -> None:
    x, y = some_data(200, 3)
    keep = np.r_[np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:rare]]
    fitted = fit_probe(x[keep], y[keep], classes=3)
    assert len(fitted.losses) > 1
    assert fitted.c == min(fitted.losses, key=lambda c: fitted.losses[c])
    assert max(fitted.losses.values()) < 100  # no fold judged an image whose class it had not learnt


def test_the_same_seed_gives_the_same_weights() -> None:
    """Law 11, of the probe."""
    x, y = some_data(300, 3)
    one, two = fit_probe(x, y, classes=3, seed=1), fit_probe(x, y, classes=3, seed=1)
    assert np.array_equal(one.weight, two.weight)
    assert np.array_equal(one.bias, two.bias)
    assert fit_probe(x, y, classes=3, seed=2).losses != one.losses


def test_balance_finds_more_of_the_rare_class() -> None:
    x, y = some_data(800, 2)
    keep = np.r_[np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:40]]
    recalls = []
    for balance in (False, True):
        fitted = fit_probe(x[keep], y[keep], classes=2, balance=balance)
        recalls.append(((x @ fitted.weight.T + fitted.bias).argmax(1) == y)[y == 1].mean())
    assert recalls[1] > recalls[0] + 0.05


def test_a_class_without_training_images_is_never_predicted_and_shifts_nothing() -> None:
    x, y = some_data(300, 3)
    fitted = fit_probe(x, np.where(y == 1, 3, y), classes=4)
    logits = x @ fitted.weight.T + fitted.bias
    assert set(logits.argmax(1)) == {0, 2, 3}
    assert (logits.argmax(1) == np.where(y == 1, 3, y)).mean() > 0.7


def test_a_constant_feature_does_no_harm() -> None:
    x, y = some_data(300, 2)
    x[:, 4] = 3.0
    fitted = fit_probe(x, y, classes=2)
    assert np.isfinite(fitted.weight).all()


def test_one_class_is_an_error() -> None:
    with pytest.raises(DataError, match="at least two"):
        fit_probe(np.zeros((9, 3), np.float32), np.zeros(9, np.int64), classes=2)


def several_labels(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Three labels that come and go independently, a rare one among them, and one that stands on no image."""
    x, _ = some_data(count, 3)
    scaled = (x - x.mean(0)) / x.std(0)
    rng = np.random.default_rng(1)
    logits = scaled @ rng.normal(size=(30, 4)) * 0.7 - np.array([0, 0.5, 2.5, 99])
    return x, (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int64)


def test_each_of_several_labels_has_the_classifier_that_it_would_have_alone() -> None:
    x, y = several_labels()
    fitted = fit_probe(x, y, classes=4)
    assert fitted.weight.shape == (4, 30)
    chances = 1 / (1 + np.exp(-(x @ fitted.weight.T + fitted.bias)))
    for i in range(3):
        alone = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.c, max_iter=5000, tol=1e-8)).fit(x, y[:, i])
        assert np.allclose(chances[:, i], alone.predict_proba(x)[:, 1], atol=2e-3)
    assert np.allclose(
        chances[:, 3], 0.5 / (len(x) + 1), rtol=1e-3
    )  # no image has the label, so its probability is low


@pytest.mark.slow
def test_c_of_several_labels_is_the_one_with_the_least_loss_over_the_folds() -> None:
    x, y = several_labels(400)
    y = y[:, :2]
    fitted = fit_probe(x, y, classes=2, seed=3)
    assert fitted.c == min(fitted.losses, key=lambda c: fitted.losses[c])
    scaled = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    folds = list(KFold(FOLDS, shuffle=True, random_state=3).split(x))
    for c, loss in fitted.losses.items():
        own = []
        for learn, judge in folds:
            for i in range(2):
                alone = LogisticRegression(C=c, tol=1e-6, max_iter=2000).fit(scaled[learn], y[learn, i])
                own.append(log_loss(y[judge, i], alone.predict_proba(scaled[judge])))
        assert loss == pytest.approx(2 * np.mean(own), rel=5e-3)  # summed over the labels of an image


def test_labels_that_stand_everywhere_or_nowhere_cannot_be_learnt() -> None:
    x, y = several_labels()
    y[:] = [1, 0, 1, 0]
    with pytest.raises(DataError, match="nothing can be learned"):
        fit_probe(x, y, classes=4)


def test_a_feature_that_hardly_moved_in_training_is_not_blown_up() -> None:
    x, y = some_data(300, 3)
    x = (x - x.mean(0)) / x.std(0)
    dead = np.zeros((300, 2), np.float32)
    dead[np.flatnonzero(y == 0)[:2], 0] = 1e-3  # the second never moves
    plain, fitted = fit_probe(x, y, classes=3), fit_probe(np.c_[x, dead], y, classes=3)
    strange = np.r_[x[0], 1.0, 1.0].astype(np.float32)
    before, after = plain.weight @ x[0] + plain.bias, fitted.weight @ strange + fitted.bias
    assert np.abs(after - before).max() < 2
    assert np.allclose(floored(x.std(0).astype(np.float64)), x.std(0))


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_fit_that_does_not_converge_says_so_once_with_the_remedy(
    multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = several_labels() if multi_label else some_data(120, 3)
    said = RecordedProgress()
    fit_probe(x, labels, classes=3, progress=said)
    assert said.said == []
    monkeypatch.setattr(probe, "ROUNDS", 1)
    monkeypatch.setattr(linear_fits, "ROUNDS", 1)
    fit_probe(x, labels, classes=3, progress=said)
    assert len(said.said) == 1
    assert "without converging" in said.said[0]
    assert "probe svm" in said.said[0]


def same(one: probe.Probe, two: probe.Probe) -> bool:
    arrays = np.array_equal(one.weight, two.weight) and np.array_equal(one.bias, two.bias)
    types = one.weight.dtype == two.weight.dtype == one.bias.dtype == np.float32
    return arrays and types and (one.c, one.reason, one.losses) == (two.c, two.reason, two.losses)


@pytest.mark.parametrize("kind", ["single-label", "multi-label", "few images", "weighted", "in parts"])
def test_a_fit_in_the_cache_is_the_fit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = several_labels() if kind == "multi-label" else some_data(30 if kind == "few images" else 120, 3)
    options = {}
    if kind == "weighted":
        options["sample_weight"] = np.random.default_rng(0).uniform(0.5, 2, len(labels))
    if kind == "in parts":
        options["together"] = np.arange(len(labels)) // 2
    plain = fit_probe(x, labels, classes=3, **options)
    assert same(fit_probe(x, labels, classes=3, **options, cache=tmp_path), plain)
    with monkeypatch.context() as patch:
        patch.setattr(probe, "_refitted", None)
        patch.setattr(probe, "choose_c", None)
        assert same(fit_probe(x.copy(), labels.copy(), classes=3, **options, cache=tmp_path), plain)
    (file,) = tmp_path.rglob("rows.bin")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert same(fit_probe(x, labels, classes=3, **options, cache=tmp_path), plain), "damaged"


@pytest.mark.slow
def test_a_fit_on_anything_else_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    x, labels = some_data(120, 3)
    weights, parts = np.full(len(labels), 2.0), np.arange(len(labels)) // 2
    shifted = x + np.eye(1, 30, dtype=np.float32)
    cases = [
        (x, labels, {}),
        (shifted * 1.5, labels, {}),
        (x, (labels + 1) % 3, {}),
        (x, labels, {"seed": 1}),
        (x, labels, {"balance": True}),
        (x, labels, {"sample_weight": weights}),
        (x, labels, {"together": parts}),
    ]
    for features, given, options in cases:
        cached = fit_probe(features, given, classes=3, **options, cache=tmp_path)
        assert same(cached, fit_probe(features, given, classes=3, **options)), options
    fit_probe(x, labels, classes=np.int64(3), seed=np.int64(1), balance=np.bool_(False), cache=tmp_path)  # type: ignore[arg-type]
    assert sum(file.stat().st_size // 24 for file in tmp_path.rglob("keys.bin")) == len(cases)


def test_a_fit_with_another_number_of_threads_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    """The sums of PyTorch and BLAS depend on it in their last bits, so a run would depend on what the cache holds."""
    x, labels = some_data(120, 3)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 1):
            torch.set_num_threads(number)
            fit_probe(x, labels, classes=3, cache=tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert len(list(tmp_path.rglob("keys.bin"))) == 2


def test_a_cached_fit_that_did_not_converge_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = some_data(120, 3)
    monkeypatch.setattr(probe, "ROUNDS", 1)
    for _ in range(2):
        said = RecordedProgress()
        fit_probe(x, labels, classes=3, progress=said, cache=tmp_path)
        assert ["without converging" in text for text in said.said] == [True]


def test_a_refit_in_the_cache_is_the_refit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = some_data(120, 3)
    several = several_labels()
    weights = np.random.default_rng(0).uniform(0.5, 2, len(labels))
    cases = [(x, labels, None, 0.1), (x, labels, None, 1.0), (x, labels, weights, 0.1), (*several, None, 0.1)]

    def found(**kept: Path) -> list[np.ndarray]:
        return [
            np.column_stack(refit_probe(features, given, classes=3, c=c, sample_weight=own, **kept))
            for features, given, own, c in cases
        ]

    plain = found()
    assert all(map(np.array_equal, found(cache=tmp_path), plain))
    monkeypatch.setattr(probe, "_refitted", None)
    assert all(map(np.array_equal, found(cache=tmp_path), plain))
    assert not np.array_equal(plain[0], plain[1])
