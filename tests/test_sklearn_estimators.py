"""What the estimators have beyond scikit-learn's (norms, dropout, weighted statistics), and their life in its tools."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wholebatch import FeedForward
from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NORMS = ["batch", "layer", "rms", None]
ARRAYS = ["coefs_", "intercepts_", "norm_weights_", "norm_biases_", "running_means_", "running_vars_"]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split(x / 16, y, test_size=0.25, random_state=0))  # type: ignore[return-value]


def few(rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(n_class=3, return_X_y=True)
    return x[:rows] / 16, y[:rows]


def arrays(estimator: Any) -> list[np.ndarray]:
    return [array for name in ARRAYS for array in getattr(estimator, name)]


def same_arrays(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


# --- norms


@pytest.mark.parametrize("solver", ["sgd", "adam", "adamw", "lbfgs"])
def test_digits_with_batch_norm(digits: Any, solver: str, engine: str) -> None:
    x, x_test, y, y_test = digits
    rate = 0.1 if solver == "sgd" else 0.01
    estimator = MLPClassifier((64,), solver=solver, learning_rate_init=rate, max_iter=20, random_state=0, engine=engine)
    assert estimator.fit(x, y).score(x_test, y_test) >= 0.96


def test_batch_norm_learns_in_fewer_epochs(digits: Any) -> None:
    """The reason to have it: the same net, solver and rate, three epochs."""
    x, x_test, y, y_test = digits
    with_norm, without = (
        MLPClassifier((100,), norm=norm, max_iter=3, batch_size=64, random_state=0).fit(x, y).score(x_test, y_test)
        for norm in ("batch", None)
    )
    assert 1 - with_norm < 0.6 * (1 - without)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", NORMS)
def test_attributes_are_the_whole_net(norm: str | None, position: str, dtype: type, engine: str) -> None:
    """The documented formula over the public attributes gives ``predict``; float32 rounds to 6e-8 a few dozen times."""
    x, y = few()
    x = x.astype(dtype)
    estimator = MLPClassifier((9, 7), norm=norm, norm_position=position, max_iter=4, random_state=0, engine=engine)
    estimator.fit(x, y)
    assert all(array.dtype == dtype for array in arrays(estimator))
    assert estimator.predict_proba(x).dtype == dtype
    h = x.astype(np.float64)
    for i, (coef, intercept) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        h = h @ coef + intercept
        if i == 2:
            break
        if norm == "batch" and position == "before":
            assert not intercept.any()
        h = h if position == "before" else np.maximum(h, 0)
        if norm == "batch":
            h = (h - estimator.running_means_[i]) / np.sqrt(estimator.running_vars_[i] + estimator.norm_eps)
        elif norm == "layer":
            h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + estimator.norm_eps)
        elif norm == "rms":
            h = h / np.sqrt((h**2).mean(1, keepdims=True) + estimator.norm_eps)
        if norm is not None:
            h = h * estimator.norm_weights_[i] + (0 if norm == "rms" else estimator.norm_biases_[i])
        h = np.maximum(h, 0) if position == "before" else h
    odds = np.exp(h - h.max(1, keepdims=True))
    expected = odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(
        estimator.predict_proba(x), expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-12
    )
    assert len(estimator.norm_weights_) == (0 if norm is None else 2)
    assert len(estimator.norm_biases_) == (2 if norm in ("batch", "layer") else 0)
    assert len(estimator.running_means_) == len(estimator.running_vars_) == (2 if norm == "batch" else 0)


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "logistic", "identity"]
)
def test_activations_reach_the_net(activation: str, engine: str) -> None:
    x, y = few()
    estimator = MLPClassifier((8,), activation=activation, max_iter=3, random_state=0, engine=engine).fit(x, y)
    with torch.no_grad():
        odds = torch.softmax(estimator.to_torch()(torch.from_numpy(x)), 1).numpy()
    np.testing.assert_allclose(estimator.predict_proba(x), odds, rtol=0, atol=1e-12)
    name = "sigmoid" if activation == "logistic" else activation
    assert estimator.to_torch().architecture.activation == name


def test_sigmoid_and_logistic_are_one(engine: str) -> None:
    x, y = few()
    one, other = (
        MLPClassifier((8,), activation=name, max_iter=3, random_state=0, engine=engine).fit(x, y)
        for name in ("sigmoid", "logistic")
    )
    assert same_arrays(one, other)


def test_the_norm_does_not_change_the_first_weights() -> None:
    """The generator is used as scikit-learn uses it, norm or not."""
    x, y = few()
    nets = [MLPClassifier((8,), norm=norm, learning_rate_init=1e-300, max_iter=1, random_state=0) for norm in NORMS]
    for net in nets:
        net.fit(x, y)
    for net in nets:
        assert all(np.array_equal(a, b) for a, b in zip(net.coefs_, nets[-1].coefs_, strict=True))


def test_a_last_mini_batch_of_one_row_joins_the_one_before(engine: str) -> None:
    """61 rows in mini-batches of 20: three steps (20, 20, 21), none with a variance of nothing."""
    x, y = few(61)
    estimator = MLPClassifier((8,), batch_size=20, max_iter=1, random_state=0, engine=engine).fit(x, y)
    assert estimator._steps == 3
    assert estimator.t_ == 61
    assert all(np.isfinite(array).all() for array in arrays(estimator))
    without = MLPClassifier((8,), norm=None, batch_size=20, max_iter=1, random_state=0, engine=engine).fit(x, y)
    assert without._steps == 4


def test_one_row_is_refused_under_batch_norm_only() -> None:
    x, y = few()
    with pytest.raises(ValueError, match=r"norm='batch' needs at least 2 samples .* got 1 sample"):
        MLPClassifier((4,)).partial_fit(x[:1], y[:1], classes=[0, 1, 2])
    with pytest.raises(ValueError, match="batch_size is 1; batch norm needs at least 2"):
        MLPClassifier((4,), batch_size=1).fit(x, y)
    for norm in ("layer", "rms", None):
        MLPClassifier((4,), norm=norm).partial_fit(x[:1], y[:1], classes=[0, 1, 2])
        MLPClassifier((4,), norm=norm, batch_size=1, max_iter=1).fit(x, y)
    MLPClassifier((), batch_size=1, max_iter=1).fit(x, y)  # no hidden layer, nothing to norm


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("position", ["before", "after"])
def test_lbfgs_predicts_what_its_last_evaluation_saw(position: str, weighted: bool, engine: str) -> None:
    """Running statistics are those of the whole table: the training-mode loss is the loss of the predictions."""
    x, y = few()
    weight = np.random.default_rng(0).uniform(0.1, 2, len(x)) if weighted else np.ones(len(x))
    estimator = MLPClassifier(
        (8,), solver="lbfgs", norm_position=position, alpha=0.0, max_iter=6, random_state=0, engine=engine
    )
    estimator.fit(x, y, sample_weight=weight if weighted else None)
    chosen = estimator.predict_proba(x)[np.arange(len(x)), y]
    np.testing.assert_allclose(-np.average(np.log(chosen), weights=weight), estimator.loss_, rtol=1e-9)


def test_lbfgs_keeps_float32_and_works_in_float64(engine: str) -> None:
    x, y = few()
    fine = MLPClassifier((8,), solver="lbfgs", max_iter=10, random_state=0, engine=engine).fit(x, y)
    coarse = MLPClassifier((8,), solver="lbfgs", max_iter=10, random_state=0, engine=engine).fit(
        x.astype(np.float32), y
    )
    assert {array.dtype for array in arrays(coarse)} == {np.dtype(np.float32)}
    # from first weights rounded to float32, through 10 iterations
    np.testing.assert_allclose(coarse.loss_, fine.loss_, rtol=1e-3)


# --- weights, smoothing, dropout, losses


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


# --- the same bits


def test_threads_and_split_change_no_bit(digits: Any) -> None:
    if not native_available():
        pytest.skip("the compiled part of wholebatch is missing")
    x, _, y, _ = digits
    nets = [
        MLPClassifier((33,), max_iter=2, dropout=0.2, random_state=0, engine="native", n_threads=n, split=split).fit(
            x, y
        )
        for n, split in [(1, "example"), (2, "example"), (3, "neuron"), (4, "auto")]
    ]
    assert all(same_arrays(nets[0], net) for net in nets[1:])


# --- living in scikit-learn's tools


@pytest.mark.parametrize("y_kind", ["strings", "labels", "values"])
def test_pickle_copy_and_clone(y_kind: str, engine: str, tmp_path: Any) -> None:
    import joblib

    x, y = few()
    kind = MLPRegressor if y_kind == "values" else MLPClassifier
    target = {
        "strings": np.array(["null", "eins", "zwei"])[y],
        "labels": np.eye(3, dtype=int)[y],
        "values": np.stack([y, -y], 1).astype(float),
    }[y_kind]
    estimator = kind(hidden_layer_sizes=(8,), max_iter=3, random_state=0, engine=engine).fit(x, target)
    expected = estimator.predict(x)
    path = tmp_path / "estimator.joblib"
    joblib.dump(estimator, path)
    for other in (
        pickle.loads(pickle.dumps(estimator)),
        copy.deepcopy(estimator),
        joblib.load(path),
        joblib.load(path, mmap_mode="r"),
        clone(estimator).fit(x, target),
    ):
        np.testing.assert_array_equal(other.predict(x), expected)
        assert same_arrays(other, estimator)
        other.partial_fit(x, target)  # the copy goes on, the first stays
        assert not same_arrays(other, estimator)
        np.testing.assert_array_equal(estimator.predict(x), expected)
    assert not hasattr(clone(estimator), "coefs_")
    state = estimator.__getstate__()
    assert "_live" not in state
    assert "_live" in vars(estimator)


def test_partial_fit_goes_on_with_the_same_bits_after_pickling(engine: str) -> None:
    x, y = few()
    whole = MLPClassifier((8,), dropout=0.3, random_state=0, norm_momentum=None, engine=engine)
    parted = clone(whole)
    for i in range(4):
        for estimator in (whole, parted):
            estimator.partial_fit(x, y, classes=[0, 1, 2])
        if i == 1:
            parted = pickle.loads(pickle.dumps(parted))
    assert same_arrays(whole, parted)
    assert whole._steps == 4


def test_pipeline_grid_search_and_cross_validation(digits: Any) -> None:
    x, x_test, y, y_test = digits
    names = np.array([f"digit {i}" for i in range(10)])
    pipeline = make_pipeline(
        StandardScaler(), MLPClassifier((20,), max_iter=6, learning_rate_init=0.01, random_state=0)
    )
    search = GridSearchCV(
        pipeline, {"mlpclassifier__norm": ["batch", None], "mlpclassifier__n_threads": [1]}, n_jobs=2, cv=2
    )
    search.fit(x, names[y])
    alone = clone(search.best_estimator_).fit(x, names[y])
    np.testing.assert_array_equal(search.predict_proba(x_test), alone.predict_proba(x_test))
    assert set(search.classes_) == set(names)
    assert accuracy_score(names[y_test], search.predict(x_test)) > 0.9
    assert cross_val_score(pipeline, x, y, cv=2).min() > 0.8


def test_forked_workers_predict(digits: Any) -> None:
    """A fork has none of the parent's threads, and the lock that one of them held stays locked: a new one is made."""
    import multiprocessing

    x, x_test, y, _ = digits
    estimator = MLPClassifier((200, 200), max_iter=2, random_state=0, n_threads=2).fit(x, y)
    expected = estimator.predict_proba(x_test)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # The target is inherited, not pickled: the child starts with the parent's engine in its hands.
    child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(estimator.predict_proba(x_test)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads: just our case
        with estimator._live.lock:  # as if another thread were predicting just now
            child.start()
    try:
        assert receiver.poll(60), "the forked process did not answer"
        np.testing.assert_array_equal(receiver.recv(), expected)
    finally:
        child.kill()
        child.join()


def test_threads_of_python_may_predict_at_once(digits: Any) -> None:
    x, x_test, y, _ = digits
    estimator = MLPClassifier((20,), max_iter=2, random_state=0, n_threads=2).fit(x, y)
    parts = [x_test[i::8] for i in range(8)]
    expected = [estimator.predict_proba(part) for part in parts]
    got: list[Any] = [None] * 8

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = estimator.predict_proba(parts[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_data_frames() -> None:
    x, y = few()
    names = [f"pixel {i}" for i in range(64)]
    table, other = pd.DataFrame(x, columns=names), pl.DataFrame(x, schema=names)
    plain = MLPClassifier((8,), max_iter=3, random_state=0).fit(x, y)
    for frame in (table, other):
        estimator = MLPClassifier((8,), max_iter=3, random_state=0).fit(frame, y)
        assert list(estimator.feature_names_in_) == names
        assert estimator.n_features_in_ == 64
        assert same_arrays(estimator, plain)
        np.testing.assert_array_equal(estimator.predict(frame), plain.predict(x))
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(table[names[::-1]])
    with pytest.raises(ValueError, match="expecting 64 features"):
        plain.predict(x[:, :10])
    with pytest.raises(ValueError, match="NaN"):
        plain.predict(np.full((1, 64), np.nan))


def test_a_person_may_change_the_parameters(engine: str) -> None:
    """The attributes are the net: what is written into them, or put in their place, counts."""
    x, y = few()
    estimator = MLPClassifier((8,), max_iter=2, random_state=0, engine=engine).fit(x, y)
    estimator.coefs_[-1][...] = 0
    estimator.intercepts_[-1][...] = [0, 5, 0]
    assert (estimator.predict(x) == 1).all()
    estimator.intercepts_[-1] = np.array([0.0, 0.0, 5.0])
    assert (estimator.predict(x) == 2).all()
    estimator.coefs_ = [np.ones_like(coef) for coef in estimator.coefs_]
    np.testing.assert_allclose(estimator.predict_proba(x)[:, 2], np.exp(5) / (2 + np.exp(5)), rtol=1e-12)


def test_to_torch_is_a_net_of_its_own(engine: str) -> None:
    x, y = few()
    with pytest.raises(NotFittedError):
        MLPRegressor().to_torch()
    estimator = MLPRegressor(hidden_layer_sizes=(8,), max_iter=2, random_state=0, engine=engine).fit(x, y.astype(float))
    expected = estimator.predict(x)
    net = estimator.to_torch()
    assert isinstance(net, FeedForward)
    assert not net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    with torch.no_grad():
        np.testing.assert_allclose(net(torch.from_numpy(x))[:, 0], expected, rtol=0, atol=1e-12)
        for parameter in net.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(estimator.predict(x), expected)


def test_torchs_generator_is_left_alone() -> None:
    x, y = few()
    before = torch.get_rng_state()
    MLPClassifier((8,), max_iter=2, dropout=0.2).fit(x, y).predict(x)
    assert torch.equal(before, torch.get_rng_state())


# --- early stopping, warm start, trouble


def test_early_stopping_goes_back_to_the_best_epoch(engine: str) -> None:
    x, y = load_digits(return_X_y=True)
    settings: dict[str, Any] = {
        "hidden_layer_sizes": (10,),
        "learning_rate_init": 0.3,
        "early_stopping": True,
        "validation_fraction": 0.3,
        "random_state": 1,
        "engine": engine,
    }
    long = MLPClassifier(n_iter_no_change=4, max_iter=60, **settings).fit(x[:400], y[:400])
    best = int(np.argmax(long.validation_scores_))
    assert long.best_validation_score_ == long.validation_scores_[best]
    assert best < long.n_iter_ - 1
    short = MLPClassifier(max_iter=best + 1, **settings).fit(x[:400], y[:400])
    assert same_arrays(long, short)  # statistics included


def test_warm_start_refuses_another_net() -> None:
    x, y = few()
    estimator = MLPClassifier((8,), max_iter=1, warm_start=True).fit(x, y)
    for change, words in [
        ({"norm": None}, "norm='batch', it is now asked to go on with norm='none'"),
        (
            {"hidden_layer_sizes": (9,)},
            r"hidden_layer_sizes=\(8,\), it is now asked to go on with hidden_layer_sizes=\(9,\)",
        ),
        ({"norm_position": "after"}, "hidden_bias=False"),
    ]:
        with pytest.raises(ValueError, match=words):
            copy.deepcopy(estimator).set_params(**change).fit(x, y)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_a_loss_that_is_not_finite(solver: str, engine: str) -> None:
    """scikit-learn's sentence, and where it happened."""
    x, y = make_regression(50, 3, random_state=0)
    settings: dict[str, Any] = {"hidden_layer_sizes": (4,), "norm": None, "learning_rate_init": 1e30, "random_state": 0}
    estimator = MLPRegressor(solver=solver, engine=engine, **settings)
    where = r".*epoch \d+, step \d+.*layer \d of 2" if solver == "sgd" else ".*step 1"
    with pytest.raises(ValueError, match=r"Solver produced non-finite parameter weights\." + where):
        estimator.fit(x * (1 if solver == "sgd" else 1e200), y)


def endless(engine: str, epochs: int = 10**6) -> MLPClassifier:
    return MLPClassifier(
        (100, 100), max_iter=epochs, n_iter_no_change=10**6, tol=0.0, random_state=0, engine=engine, n_threads=2
    )


def test_ctrl_c_leaves_a_whole_epoch(engine: str) -> None:
    """A real signal, in the middle of the fit: scikit-learn's warning, and an estimator that predicts.

    Where the signal comes just after the engine's work, the net is one epoch ahead of the curve, never a part of one.
    """
    x, y = load_digits(return_X_y=True)
    endless(engine, 1).fit(x, y)  # what is imported at the first use is imported before the signal
    estimator = endless(engine)

    def interrupt() -> None:
        while len(getattr(estimator, "loss_curve_", ())) < 8:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        estimator.fit(x, y)
    watcher.join()
    assert 8 <= estimator.n_iter_ == len(estimator.loss_curve_) < 10**6
    done, ahead = (endless(engine, estimator.n_iter_ + more).fit(x, y) for more in (0, 1))
    assert same_arrays(estimator, done) or same_arrays(estimator, ahead)
    assert estimator.score(x, y) > 0.5


def test_ctrl_c_while_an_epoch_is_written_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the interrupt came between the parameters and the running statistics: a net of two epochs at a time."""
    if not native_available():
        pytest.skip("the compiled part of wholebatch is missing")
    from wholebatch.feedforward.native import NativeEngine

    x, y = few()
    real, calls = NativeEngine._store_running, []

    def interrupted(self: Any, network: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, network)

    monkeypatch.setattr(NativeEngine, "_store_running", interrupted)
    estimator = endless("native")
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        estimator.fit(x, y)
    monkeypatch.undo()
    assert estimator.n_iter_ == 2
    assert estimator._steps == 3
    assert same_arrays(estimator, endless("native", 3).fit(x, y))


def test_several_labels_and_outputs(engine: str) -> None:
    x, y = make_multilabel_classification(200, random_state=0)
    labels = MLPClassifier((50,), max_iter=100, learning_rate_init=0.02, random_state=0, engine=engine).fit(x, y)
    assert labels.predict(x).shape == y.shape
    assert labels.out_activation_ == "logistic"
    assert labels.score(x, y) > 0.8
    x, values = make_regression(300, 10, n_targets=3, random_state=0)
    values = values / values.std(0)
    outputs = MLPRegressor(
        hidden_layer_sizes=(20,), max_iter=60, learning_rate_init=0.02, random_state=0, engine=engine
    ).fit(x, values)
    assert outputs.predict(x).shape == values.shape
    assert outputs.score(x, values) > 0.9
