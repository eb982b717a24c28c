"""The estimators' fits: early stopping, warm start, losses that are not finite, Ctrl-C, several outputs."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression

from estimators import few, same_arrays
from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


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
