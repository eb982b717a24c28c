"""The estimators with batch, layer and RMS norm, and with none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from estimators import arrays, few, same_arrays
from wholebatch.sklearn import MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
NORMS = ["batch", "layer", "rms", None]


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
