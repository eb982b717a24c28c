"""Weights, label smoothing, dropout, losses and penalties beyond scikit-learn's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from estimators import arrays, few, same_arrays
from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("position", ["before", "after"])
def test_weights_in_the_statistics_on_both_engines(position: str) -> None:
    """300 rows are three of the native engine's blocks; its bits do not depend on threads or split."""
    if not native_available():
        pytest.skip("the compiled part of wholebatch is missing")
    x, y = load_digits(return_X_y=True)
    x, y = x[:600], y[:600]
    weight = np.random.default_rng(0).uniform(0, 3, len(x)) * (np.arange(len(x)) % 3 > 0)
    settings: dict[str, Any] = {"norm_position": position, "batch_size": 300, "max_iter": 3, "random_state": 0}
    fitted = [
        MLPClassifier((17, 9), engine=engine, n_threads=threads, split=split, **settings).fit(
            x, y, sample_weight=weight
        )
        for engine, threads, split in [
            ("reference", 1, "auto"),
            ("native", 1, "example"),
            ("native", 3, "example"),
            ("native", 2, "neuron"),
        ]
    ]
    assert same_arrays(fitted[1], fitted[2])
    assert same_arrays(fitted[1], fitted[3])
    for a, b in zip(arrays(fitted[0]), arrays(fitted[1]), strict=True):
        # float64 sums of some hundred terms (1e-13), six steps of Adam
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_weights_of_any_scale_give_the_same_net(engine: str) -> None:
    """Weights that sum to 1 do not count examples, so the variance cannot be made unbiased by their sum."""
    x, y = few()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(x))
    one, other = (
        MLPClassifier((8,), alpha=0.0, max_iter=5, random_state=0, engine=engine).fit(x, y, sample_weight=w)
        for w in (weight / weight.sum(), weight * len(x) / weight.sum())
    )
    # epsilon's share of Adam's step, and rounding
    np.testing.assert_allclose(one.predict_proba(x), other.predict_proba(x), rtol=0, atol=1e-6)


def test_weights_that_are_all_zero_in_a_mini_batch_change_nothing_there(engine: str) -> None:
    x, y = few(40)
    weight = np.repeat([1.0, 0.0], 20)
    settings: dict[str, Any] = {"batch_size": 20, "shuffle": False, "solver": "sgd", "momentum": 0.0, "max_iter": 1}
    whole = MLPClassifier((8,), random_state=0, engine=engine, **settings).fit(x, y, sample_weight=weight)
    half = MLPClassifier((8,), random_state=0, engine=engine, **settings).fit(x[:20], y[:20], sample_weight=weight[:20])
    for a, b in zip(arrays(whole), arrays(half), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_class_weight_is_sample_weight(solver: str, engine: str) -> None:
    x, y = few()
    names = np.array(["zero", "one", "two"])[y]
    weights = {"zero": 0.5, "one": 3.0, "two": 1.0}
    each = np.array([weights[name] for name in names])
    more = np.random.default_rng(0).uniform(0.5, 2, len(x))
    one = MLPClassifier((8,), solver=solver, class_weight=weights, max_iter=3, random_state=0, engine=engine)
    other = MLPClassifier((8,), solver=solver, max_iter=3, random_state=0, engine=engine)
    assert same_arrays(one.fit(x, names), other.fit(x, names, sample_weight=each))
    assert same_arrays(one.fit(x, names, sample_weight=more), other.fit(x, names, sample_weight=each * more))
    counts = np.bincount(y)
    balanced = len(y) / (3 * counts[y])
    one.set_params(class_weight="balanced")
    assert same_arrays(one.fit(x, names), other.fit(x, names, sample_weight=balanced))


def test_balanced_weights_need_all_of_y() -> None:
    x, y = few()
    with pytest.raises(ValueError, match=r"class_weight='balanced' needs all of y .* partial_fit"):
        MLPClassifier((4,), class_weight="balanced").partial_fit(x, y, classes=[0, 1, 2])


@pytest.mark.parametrize("labels", ["classes", "several"])
def test_label_smoothing(labels: str, engine: str) -> None:
    """At the optimum of a net that can learn its rows by heart, the probabilities are the smoothed targets."""
    x = np.eye(12)
    y = np.arange(12) % 3 if labels == "classes" else np.random.default_rng(0).integers(0, 2, (12, 4))
    estimator = MLPClassifier(
        (), solver="lbfgs", label_smoothing=0.3, alpha=0.0, max_iter=500, tol=1e-10, random_state=0, engine=engine
    ).fit(x, y)
    target = np.eye(3)[y] * 0.7 + 0.1 if labels == "classes" else y * 0.7 + 0.15
    # SciPy stops within some 1e-8 of the least loss; its curvature in a probability p is 1 / (12 p) > 0.08
    np.testing.assert_allclose(estimator.predict_proba(x), target, rtol=0, atol=1e-3)


def test_huber_loss(engine: str) -> None:
    """One outlier: the squared error is drawn towards it, the Huber loss hardly. loss_ is the documented mean."""
    x = np.linspace(-1, 1, 60)[:, None]
    y = 2 * x[:, 0]
    y[30] += 100
    settings: dict[str, Any] = {"hidden_layer_sizes": (), "solver": "lbfgs", "alpha": 0.0, "random_state": 0}
    squared = MLPRegressor(engine=engine, **settings).fit(x, y)
    huber = MLPRegressor("huber", huber_delta=0.5, engine=engine, **settings).fit(x, y)
    clean = np.delete(np.arange(60), 30)
    assert np.abs(squared.predict(x) - y)[clean].mean() > 1
    assert np.abs(huber.predict(x) - y)[clean].mean() < 0.05
    off = np.abs(huber.predict(x) - y)
    expected = np.where(off <= 0.5, 0.5 * off**2, 0.5 * (off - 0.25)).mean()
    np.testing.assert_allclose(huber.loss_, expected, rtol=1e-9)


def test_poisson_names_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"'poisson' is not in this engine.*sklearn\.neural_network\.MLPRegressor"):
        MLPRegressor("poisson").fit(np.ones((4, 1)), [1.0, 2.0, 3.0, 4.0])


def test_dropout(engine: str) -> None:
    x, y = few()
    settings: dict[str, Any] = {"hidden_layer_sizes": (16,), "max_iter": 5, "engine": engine}
    one, again, other, none = (
        MLPClassifier(dropout=p, random_state=seed, **settings).fit(x, y)
        for p, seed in [(0.5, 0), (0.5, 0), (0.5, 1), (0, 0)]
    )
    assert same_arrays(one, again)
    assert not same_arrays(one, other)
    assert not same_arrays(one, none)
    np.testing.assert_array_equal(one.predict_proba(x), one.predict_proba(x))  # none of it in predict
    with pytest.raises(ValueError, match=r"dropout=0.5 with solver='lbfgs'"):
        MLPClassifier(dropout=0.5, solver="lbfgs").fit(x, y)


def test_max_grad_norm_bounds_a_step(engine: str) -> None:
    """A plain SGD step is the rate times the gradient, so no step is longer than rate * max_grad_norm."""
    x, y = few()
    estimator = MLPClassifier(
        (8,), solver="sgd", momentum=0.0, learning_rate_init=0.1, max_grad_norm=1e-3, shuffle=False, engine=engine
    )
    estimator.partial_fit(x, y, classes=[0, 1, 2])
    before = np.concatenate([a.ravel() for a in arrays(estimator)[:6]])
    before = before.copy()
    estimator.partial_fit(x, y)
    after = np.concatenate([a.ravel() for a in arrays(estimator)[:6]])
    step = np.linalg.norm(after - before)
    assert 0.99e-4 < step <= 1e-4 * (1 + 1e-9)


def test_weight_decay_is_adamws_alone(engine: str) -> None:
    x, y = few()
    settings: dict[str, Any] = {
        "hidden_layer_sizes": (8,),
        "alpha": 0.0,
        "max_iter": 2,
        "random_state": 0,
        "engine": engine,
    }
    adam, undecayed, decayed, unheard = (
        MLPClassifier(solver=solver, weight_decay=decay, **settings).fit(x, y)
        for solver, decay in [("adam", 0.0), ("adamw", 0.0), ("adamw", 5.0), ("adam", 5.0)]
    )
    assert same_arrays(adam, unheard)
    assert same_arrays(adam, undecayed)
    assert np.abs(decayed.coefs_[0]).sum() < np.abs(adam.coefs_[0]).sum()
    assert decayed.best_loss_ == min(decayed.loss_curve_)
