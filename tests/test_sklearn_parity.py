"""Without a norm the estimators are scikit-learn's own: same loss curve, same parameters, same predictions.

Both sides compute the same sums in float64, in another order. An order changes a sum of n terms by at most about
n * eps (n < 2000 here: 4e-13), relative; through some tens of Adam or SGD steps, and through L-BFGS's divisions,
rounding grows by a few hundred at most. 1e-9 leaves that room; a difference of formula (eps, momentum, a penalty's
divisor) is above 1e-6.
"""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn import neural_network
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge

from wholebatch.sklearn import MLPClassifier, MLPRegressor

TOLERANCE = 1e-9
SOLVERS = ["sgd", "adam", "lbfgs"]
PAIRS = {MLPClassifier: neural_network.MLPClassifier, MLPRegressor: neural_network.MLPRegressor}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def digits(classes: int = 10, rows: int = 500) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(n_class=classes, return_X_y=True)
    return x[:rows] / 16, y[:rows]


def values(outputs: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_regression(300, 10, n_targets=outputs, noise=5.0, random_state=0)
    return x, y / y.std()


def tasks() -> dict[str, tuple[Any, np.ndarray, np.ndarray]]:
    multilabel = make_multilabel_classification(300, random_state=0)
    two = digits(2)
    return {
        "two classes": (MLPClassifier, two[0], np.array(["no", "yes"])[two[1]]),
        "ten classes": (MLPClassifier, *digits()),
        "several labels": (MLPClassifier, multilabel[0] / 10, multilabel[1]),
        "one output": (MLPRegressor, *values(1)),
        "three outputs": (MLPRegressor, *values(3)),
    }


TASKS = tasks()


def ours(kind: Any, engine: str, **parameters: Any) -> Any:
    return kind(norm=None, engine=engine, n_threads=2, **parameters)


def pair(kind: Any, engine: str, **parameters: Any) -> tuple[Any, Any]:
    return PAIRS[kind](**parameters), ours(kind, engine, **parameters)


def same(theirs: Any, mine: Any, x: Any) -> None:
    """Attributes and predictions agree."""
    assert mine.n_iter_ == theirs.n_iter_
    assert mine.t_ == theirs.t_
    assert mine.n_layers_ == theirs.n_layers_
    assert mine.n_outputs_ == theirs.n_outputs_
    assert mine.out_activation_ == theirs.out_activation_
    np.testing.assert_allclose(mine.loss_, theirs.loss_, rtol=TOLERANCE)
    for name in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_"):
        assert hasattr(mine, name) == hasattr(theirs, name), name
        expected = getattr(theirs, name, None)
        if expected is None:
            assert getattr(mine, name, None) is None, name
        else:
            np.testing.assert_allclose(getattr(mine, name), expected, rtol=TOLERANCE, err_msg=name)
    for name in ("coefs_", "intercepts_"):
        assert [a.shape for a in getattr(mine, name)] == [a.shape for a in getattr(theirs, name)]
        for got, expected in zip(getattr(mine, name), getattr(theirs, name), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE, err_msg=name)
    if hasattr(theirs, "predict_proba"):
        np.testing.assert_allclose(mine.predict_proba(x), theirs.predict_proba(x), rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(mine.predict(x), theirs.predict(x))
        np.testing.assert_array_equal(mine.classes_, theirs.classes_)
    else:
        assert mine.predict(x).shape == theirs.predict(x).shape
        np.testing.assert_allclose(mine.predict(x), theirs.predict(x), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("task", "solver"), [c for c in product(TASKS, SOLVERS) if c != ("three outputs", "lbfgs")])
def test_every_task_and_solver(task: str, solver: str, engine: str) -> None:
    kind, x, y = TASKS[task]
    theirs, mine = pair(kind, engine, hidden_layer_sizes=(12, 7), solver=solver, max_iter=12, random_state=3)
    same(theirs.fit(x, y), mine.fit(x, y), x)


def test_lbfgs_with_several_outputs_finds_the_minimum(engine: str) -> None:
    """scikit-learn hands L-BFGS a loss averaged over outputs with the gradient of their sum (its issue 8349), and so
    may stop its line searches elsewhere. Ours is one function: without a hidden layer, ridge regression.
    """
    x, y = TASKS["three outputs"][1:]
    mine = ours(MLPRegressor, engine, hidden_layer_sizes=(), solver="lbfgs", alpha=20.0, tol=1e-9, random_state=0)
    mine.fit(x, y)
    exact = Ridge(alpha=20.0).fit(x, y)
    # L-BFGS stops where a step gains under 2.2e-9 (SciPy's ftol): some 1e-8 above the least loss, and at a curvature of
    # 0.5 within 2e-4 of the coefficients.
    np.testing.assert_allclose(mine.coefs_[0].T, exact.coef_, rtol=0, atol=2e-4)
    error = 0.5 * np.mean((exact.predict(x) - y) ** 2) + 0.5 * 20.0 * np.sum(exact.coef_**2) / len(x)
    np.testing.assert_allclose(mine.loss_, error, rtol=0, atol=1e-8)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_activations(activation: str, engine: str) -> None:
    x, y = digits()
    theirs, mine = pair(MLPClassifier, engine, hidden_layer_sizes=9, activation=activation, max_iter=5, random_state=0)
    same(theirs.fit(x, y), mine.fit(x, y), x)


def test_no_hidden_layer(engine: str) -> None:
    x, y = digits()
    theirs, mine = pair(MLPClassifier, engine, hidden_layer_sizes=(), max_iter=5, random_state=0)
    same(theirs.fit(x, y), mine.fit(x, y), x)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
def test_schedules_of_sgd(schedule: str, momentum: float, nesterov: bool, engine: str) -> None:
    """The rate changes between epochs here (several times), so the momentum has to keep its past rate."""
    x, y = digits(rows=300)
    theirs, mine = pair(
        MLPClassifier,
        engine,
        hidden_layer_sizes=(10,),
        solver="sgd",
        learning_rate=schedule,
        learning_rate_init=0.2,
        power_t=0.2,
        momentum=momentum,
        nesterovs_momentum=nesterov,
        tol=0.1,
        n_iter_no_change=2,
        max_iter=40,
        random_state=1,
    )
    same(theirs.fit(x, y), mine.fit(x, y), x)
    if schedule != "constant":
        assert mine._optimizer.learning_rate < 0.2
    assert mine._optimizer.learning_rate == theirs._optimizer.learning_rate


@pytest.mark.parametrize(
    ("task", "solver"), [*product(["two classes", "ten classes"], SOLVERS), ("three outputs", "sgd")]
)
def test_sample_weights(task: str, solver: str, engine: str) -> None:
    """A large alpha, because its penalty is divided by the sum of the mini-batch's weights."""
    kind, x, y = TASKS[task]
    weight = np.random.default_rng(0).uniform(0.1, 3, len(x))
    theirs, mine = pair(kind, engine, hidden_layer_sizes=(8,), solver=solver, alpha=2.0, max_iter=8, random_state=2)
    same(theirs.fit(x, y, sample_weight=weight), mine.fit(x, y, sample_weight=weight), x)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_early_stopping(task: str, weighted: bool, engine: str) -> None:
    kind, x, y = TASKS[task]
    weight = np.random.default_rng(1).uniform(0.5, 2, len(x)) if weighted else None
    theirs, mine = pair(
        kind,
        engine,
        hidden_layer_sizes=(8,),
        early_stopping=True,
        validation_fraction=0.2,
        n_iter_no_change=3,
        learning_rate_init=0.05,
        max_iter=100,
        random_state=4,
    )
    same(theirs.fit(x, y, sample_weight=weight), mine.fit(x, y, sample_weight=weight), x)
    assert mine.n_iter_ < 100


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_sparse_input(form: Any, solver: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the engine is CSR."""
    from wholebatch.sklearn import epochs, perceptron

    x, y = digits()
    seen = []
    for module in (epochs, perceptron):
        real = module.live_for
        monkeypatch.setattr(module, "live_for", lambda *a, real=real: Spy.of(real(*a), seen))
    theirs, mine = pair(MLPClassifier, engine, hidden_layer_sizes=(8,), solver=solver, max_iter=5, random_state=0)
    same(theirs.fit(form(x), y), mine.fit(form(x), y), form(x))
    assert {"predict", "train_epoch" if solver == "adam" else "gradients"} == {name for name, _ in seen}
    assert all(scipy.sparse.issparse(table) and table.format == "csr" for _, table in seen)


class Spy:
    """An engine that notes the tables it is given."""

    def __init__(self, engine: Any, seen: list[tuple[str, Any]]) -> None:
        object.__setattr__(self, "engine", engine)
        object.__setattr__(self, "seen", seen)

    @classmethod
    def of(cls, live: Any, seen: list[tuple[str, Any]]) -> Any:
        import copy

        spied = copy.copy(live)
        spied.engine = cls(live.engine, seen)
        return spied

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.engine, name)
        if name not in ("train_epoch", "gradients", "predict"):
            return found

        def noted(first: Any, *args: Any, **named: Any) -> Any:
            self.seen.append((name, getattr(first, "x", first)))
            return found(first, *args, **named)

        return noted

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.engine, name, value)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit(solver: str, engine: str) -> None:
    """The optimizer goes on from call to call, also after pickling, and also where a schedule changed the rate."""
    import pickle

    x, y = digits()
    theirs, mine = pair(
        MLPClassifier, engine, hidden_layer_sizes=(8,), solver=solver, learning_rate="invscaling", random_state=0
    )
    for index, rows in enumerate(np.array_split(np.arange(len(x)), 5)):
        classes = np.arange(10) if index == 0 else None
        theirs.partial_fit(x[rows], y[rows], classes=classes)
        mine.partial_fit(x[rows], y[rows], classes=classes)
        if index == 2:
            mine = pickle.loads(pickle.dumps(mine))
    same(theirs, mine, x)


def test_partial_fit_after_fit_of_a_regressor(engine: str) -> None:
    x, y = values(2)
    theirs, mine = pair(MLPRegressor, engine, hidden_layer_sizes=(8,), max_iter=3, random_state=0)
    for estimator in (theirs, mine):
        estimator.fit(x, y).partial_fit(x[:70], y[:70]).partial_fit(x[70:], y[70:])
    same(theirs, mine, x)


@pytest.mark.parametrize("solver", SOLVERS)
def test_warm_start(solver: str, engine: str) -> None:
    x, y = digits()
    theirs, mine = pair(
        MLPClassifier, engine, hidden_layer_sizes=(8,), solver=solver, max_iter=4, warm_start=True, random_state=0
    )
    for estimator in (theirs, mine):
        estimator.fit(x, y).fit(x, y)
    same(theirs, mine, x)


def test_without_shuffling_and_with_a_remainder(engine: str) -> None:
    """301 rows in mini-batches of 100: the last holds a single row, which only batch norm would have to merge."""
    x, y = digits(rows=301)
    theirs, mine = pair(
        MLPClassifier, engine, hidden_layer_sizes=(8,), batch_size=100, shuffle=False, max_iter=5, random_state=0
    )
    same(theirs.fit(x, y), mine.fit(x, y), x)


def test_float32_stays_float32(engine: str) -> None:
    """Rounding of float32 (6e-8) through 10 epochs of Adam: 1e-3 of the parameters' size of about 0.3 is ample."""
    x, y = digits()
    x = x.astype(np.float32)
    theirs, mine = pair(MLPClassifier, engine, hidden_layer_sizes=(8,), max_iter=10, random_state=0)
    theirs.fit(x, y)
    mine.fit(x, y)
    assert {a.dtype for a in mine.coefs_ + mine.intercepts_} == {np.dtype(np.float32)}
    assert mine.predict_proba(x).dtype == np.float32
    for got, expected in zip(mine.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-4)


def test_verbose_prints_the_same(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = digits(rows=200)
    printed = []
    settings = {"hidden_layer_sizes": (5,), "random_state": 0, "verbose": True}
    for kind in pair(MLPClassifier, engine), pair(MLPRegressor, engine):
        for estimator in kind:
            for more in (
                {"max_iter": 3},
                {"max_iter": 30, "early_stopping": True, "n_iter_no_change": 1, "tol": 0.1},
                {"max_iter": 30, "solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.5},
            ):
                estimator.set_params(**settings, **more).fit(x, y)
            printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[2] == printed[3]
    assert "Validation score" in printed[0]
    assert "Setting learning rate to" in printed[0]


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_warnings(solver: str, engine: str) -> None:
    x, y = digits(rows=100)
    told = []
    for estimator in pair(
        MLPClassifier, engine, hidden_layer_sizes=(5,), solver=solver, max_iter=2, batch_size=1000, random_state=0
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(x, y)
        told.append([(w.category, str(w.message)) for w in caught])
    assert told[0] == told[1]
    assert told[1][-1][0] is ConvergenceWarning


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_layer_sizes": -1},
        {"hidden_layer_sizes": (4, 0)},
        {"solver": "newton"},
        {"alpha": -1},
        {"batch_size": 0},
        {"learning_rate": "linear"},
        {"momentum": 2},
        {"validation_fraction": 1},
        {"beta_1": 1.0},
        {"n_iter_no_change": -1},
        {"early_stopping": True, "validation_fraction": 0.001},
    ],
)
def test_wrong_parameters_are_refused_alike(wrong: dict[str, Any]) -> None:
    """Same type, and the same words but for the values that only our own parameters can take."""
    x, y = digits(2, rows=60)
    messages = []
    for estimator in neural_network.MLPClassifier(**wrong), MLPClassifier(norm=None, **wrong):
        with pytest.raises(ValueError) as raised:
            estimator.fit(x, y)
        messages.append((raised.type, str(raised.value).split("must be a str among")[0]))
    assert messages[0] == messages[1]


def test_partial_fit_refuses_alike() -> None:
    x, y = digits(2, rows=60)
    for estimator in neural_network.MLPClassifier(early_stopping=True), MLPClassifier(early_stopping=True):
        with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
            estimator.partial_fit(x, y, classes=[0, 1])
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    assert hasattr(MLPClassifier(solver="adamw"), "partial_fit")
    started = MLPClassifier(hidden_layer_sizes=(3,)).partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match="has classes not in"):
        started.partial_fit(x, y + 5)
