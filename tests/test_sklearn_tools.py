"""The estimators' life in scikit-learn's tools, in files, in forks, in threads and beside data frames."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from estimators import few, same_arrays
from wholebatch import FeedForward
from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


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
