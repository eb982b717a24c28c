"""The estimators over ranks: the net of one process that holds all shards, whatever a rank lacks."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from estimators import arrays, few, same_arrays
from ranks import run_ranks
from wholebatch import Spread
from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

SHARDS = 4
X, Y = few(118)
X = X[:, 8:40]
NAMES = np.array(["zero", "one", "two"], object)[Y]
SORTED = np.argsort(Y, kind="stable")  # each rank has the classes that the others lack
LABELS = np.stack([Y == 0, Y != 1], 1).astype(int)
VALUES = np.stack([X.sum(1), X[:, 3]], 1)
WEIGHT = np.linspace(0.2, 2, len(X))
SMALL: dict[str, Any] = {"hidden_layer_sizes": (9, 7), "random_state": 3, "learning_rate_init": 0.01, "max_iter": 3}

FITS: dict[str, tuple[Any, np.ndarray, np.ndarray, np.ndarray | None]] = {
    "classes apart": (MLPClassifier(**SMALL, batch_size=20, dropout=0.2), X[SORTED], NAMES[SORTED], None),
    "balanced": (MLPClassifier(**SMALL, class_weight="balanced"), X[SORTED], Y[SORTED], WEIGHT),
    "two classes": (MLPClassifier(**SMALL, batch_size=30, early_stopping=True), X, Y == 2, None),
    "early stopping": (
        MLPClassifier(
            **{**SMALL, "max_iter": 15}, early_stopping=True, n_iter_no_change=1, validation_fraction=0.3, solver="sgd"
        ),
        X[SORTED], NAMES[SORTED], WEIGHT,
    ),
    "labels": (MLPClassifier(**SMALL, class_weight="balanced", norm_position="after"), X, LABELS, None),
    "values": (MLPRegressor(**SMALL, early_stopping=True, batch_size=25, solver="adamw"), X, VALUES, WEIGHT),
    "huber, in order": (MLPRegressor(**SMALL, loss="huber", shuffle=False, norm="layer"), X, VALUES, None),
    "lbfgs": (MLPClassifier(**SMALL, solver="lbfgs", class_weight="balanced"), X[SORTED], Y[SORTED], WEIGHT),
    "lbfgs, sparse": (MLPRegressor(**SMALL, solver="lbfgs"), X * (X > 0.5), VALUES, None),
    "single": (MLPClassifier(**SMALL, batch_size=40), X.astype(np.float32), Y, None),
}  # fmt: skip


def part(values: Any, rank: int, ranks: int) -> Any:
    """The rows of a rank's shards."""
    if values is None:
        return None
    bounds, each = shard_bounds(values.shape[0], SHARDS), SHARDS // ranks
    return values[bounds[rank * each] : bounds[(rank + 1) * each]]


def learn(name: str, rank: int, ranks: int, **more: Any) -> Any:
    estimator, x, y, weight = FITS[name]
    estimator = clone(estimator).set_params(**{"spread": Spread(SHARDS), "engine": "reference"} | more)
    table = scipy.sparse.csr_matrix(x) if "sparse" in name else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(part(table, rank, ranks), part(y, rank, ranks), part(weight, rank, ranks))


def state_of(estimator: Any) -> dict[str, Any]:
    names = ("n_iter_", "loss_", "loss_curve_", "validation_scores_", "best_validation_score_", "t_", "classes_")
    found = {name: getattr(estimator, name) for name in names if hasattr(estimator, name)}
    return {name: np.asarray(value).tolist() for name, value in found.items()}


def learn_each(rank: int, ranks: int) -> dict[tuple[str, str], tuple[Any, dict[str, Any], Any]]:
    found = {}
    for name in FITS:
        for engine in ("reference", *(["native"] if native_available() else [])):
            estimator = learn(name, rank, ranks, engine=engine)
            found[name, engine] = pickle.loads(pickle.dumps(estimator)), state_of(estimator), estimator.predict(X)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], tuple[Any, dict[str, Any], Any]]:
    return learn_each(0, 1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_ends_with_the_net_of_one_process(ranks: int, alone: dict[Any, Any]):
    for outcome in run_ranks(learn_each, ranks, ranks):
        for case, (estimator, state, predicted) in outcome.value.items():
            assert state == alone[case][1], case
            assert same_arrays(estimator, alone[case][0]), case
            np.testing.assert_array_equal(predicted, alone[case][2], str(case))
            np.testing.assert_array_equal(estimator.predict(X), predicted, str(case))


def test_the_classes_of_all_ranks_are_known_everywhere(alone: dict[Any, Any]):
    estimator, state, _ = alone["classes apart", "reference"]
    assert state["classes_"] == ["one", "two", "zero"]
    assert estimator.classes_.dtype == MLPClassifier(**SMALL).partial_fit(X, NAMES, classes=NAMES).classes_.dtype
    assert estimator.out_activation_ == "softmax"


def test_early_stopping_stopped(alone: dict[Any, Any]):
    _, state, _ = alone["early stopping", "reference"]
    assert 3 <= state["n_iter_"] < 15
    assert state["best_validation_score_"] == max(state["validation_scores_"])


@pytest.mark.parametrize("name", ["balanced", "labels", "huber, in order", "lbfgs"])
def test_mini_batches_of_all_rows_give_what_they_give_without_a_spread(name: str, engine: str):
    """Sums in another order: float64 rounding, a few steps long. ``balanced`` weights are those of all rows."""
    more = {} if "lbfgs" in name else {"batch_size": 118}
    spread, whole = learn(name, 0, 1, engine=engine, **more), learn(name, 0, 1, engine=engine, spread=None, **more)
    assert spread.loss_ == pytest.approx(whole.loss_, rel=1e-9)
    for ours, theirs in zip(arrays(spread), arrays(whole), strict=True):
        # L-BFGS divides by differences of gradients, which enlarges their rounding.
        np.testing.assert_allclose(ours, theirs, rtol=1e-6 if "lbfgs" in name else 1e-9, atol=1e-9)


def go_on(rank: int, ranks: int) -> list[Any]:
    """Portions one after the other, the first without the class "two"; and warm starts."""
    estimator = MLPClassifier(**SMALL, batch_size=16, spread=Spread(SHARDS))
    for rows in (np.flatnonzero(Y != 2), np.arange(60), np.arange(60, 118)):
        estimator.partial_fit(
            part(X[rows], rank, ranks), part(NAMES[rows], rank, ranks), classes=["zero", "one", "two"]
        )
    engine = estimator._live.engine
    estimator.partial_fit(part(X, rank, ranks), part(NAMES, rank, ranks))
    assert estimator._live.engine is engine, "a new engine for each portion"
    warm = MLPRegressor(**SMALL, warm_start=True, spread=Spread(SHARDS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(2):
            warm.fit(part(X, rank, ranks), part(VALUES, rank, ranks))
    return [pickle.loads(pickle.dumps(estimator)), pickle.loads(pickle.dumps(warm))]


def test_portions_and_warm_starts_go_on_over_ranks():
    whole = go_on(0, 1)
    for outcome in run_ranks(go_on, 2, 2):
        for one, other in zip(outcome.value, whole, strict=True):
            assert same_arrays(one, other)
            assert one.loss_curve_ == other.loss_curve_


def begin_anywhere(rank: int) -> Any:
    """Without a number for random_state, and with one on rank 0 alone that has drawn before."""
    generator = np.random.RandomState(rank)
    estimators = [MLPRegressor(**{**SMALL, "random_state": of}, spread=Spread()) for of in (None, generator)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [estimator.fit(part(X, rank, 2), part(VALUES, rank, 2)) for estimator in estimators]


def test_ranks_begin_alike_without_a_number_for_random_state():
    one, other = (outcome.value for outcome in run_ranks(begin_anywhere, 2))
    assert all(map(same_arrays, one, other))
    assert not same_arrays(one[0], one[1])


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "columns": ({"X": X[:58, :5]}, "the ranks disagree on the features: rank 0 has 32 columns, rank 1 has 5 columns"),
    "nan": ({"X": np.full((58, 32), np.nan)}, "on rank 1 of 2: Input X contains NaN"),
    "lengths": ({"y": Y[:10]}, "on rank 1 of 2: Found input variables with inconsistent numbers of samples: [58, 10]"),
    "weights": ({"sample_weight": np.ones(3)}, "on rank 1 of 2: "),
    "text": ({"y": NAMES[:58]}, "the ranks disagree on the targets: rank 0 has whole numbers, 1 for each row, rank 1"),
    "labels": ({"y": LABELS[:58]}, "the ranks disagree on the targets: rank 0 has whole numbers, 1 for each row, rank"),
    "values": ({"y": X[:58, 3]}, "on rank 1 of 2: Unknown label type: continuous"),
    "things": ({"y": np.array([..., None] * 29, object)}, "on rank 1 of 2: "),
    "max_iter": ({"set": {"max_iter": 9}}, "the ranks disagree on max_iter: rank 0 has 3, rank 1 has 9"),
    "norm": ({"set": {"norm": None}}, "the ranks disagree on norm: rank 0 has 'batch', rank 1 has None"),
    "seed": ({"set": {"random_state": 9}}, "the ranks disagree on random_state: [3, 9]"),
    "classes": ({"set": {"class_weight": {0: 2.0, 5: 1.0}}}, "the ranks disagree on class_weight"),
}
EVERYWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "spread": ({"set": {"spread": Spread(3)}}, "3 shards cannot be dealt to 2 ranks in equal numbers"),
    "no spread": ({"set": {"spread": "all"}}, "The 'spread' parameter of MLPClassifier must be an instance of"),
    "dropout": ({"set": {"solver": "lbfgs", "dropout": 0.1}}, "dropout=0.1 with solver='lbfgs'"),
    "few": ({"X": X[:1], "y": Y[:1], "set": {"early_stopping": True}}, "The validation set is too small."),
    "zeros": ({"sample_weight": np.zeros(58)}, "sample weights must not be negative, nor all zero; they are all zero"),
    "diverges": ({"set": {"solver": "sgd", "learning_rate_init": 1e300}}, "Solver produced non-finite parameter"),
}


def mistake(rank: int) -> dict[str, str]:
    said = {}
    for made_by_all, mistakes in ((False, MISTAKES), (True, EVERYWHERE)):
        for name, (change, _) in mistakes.items():
            given: dict[str, Any] = {"X": part(X, rank, 2)[:58], "y": part(Y, rank, 2)[:58]}
            given |= change if made_by_all or rank == 1 else {}
            estimator = MLPClassifier(**SMALL, spread=Spread(2), engine="reference")
            estimator.set_params(**given.pop("set", {}))
            try:
                estimator.fit(**given)
            except ValueError as error:
                said[name] = str(error)
    return said


def test_a_mistake_is_told_in_the_same_words_on_every_rank():
    said = [outcome.value for outcome in run_ranks(mistake, 2)]
    assert said[0] == said[1]
    assert said[0].keys() == MISTAKES.keys() | EVERYWHERE.keys()
    for name, (_, words) in (MISTAKES | EVERYWHERE).items():
        assert said[0][name].startswith(words), name


def lose_a_class(rank: int) -> tuple[str, str]:
    """A warm start without one of the classes, and a portion with an unknown one; on rank 1 alone."""
    said = []
    for first, then in ((NAMES, NAMES[Y != 2]), (NAMES[Y != 2], NAMES)):
        estimator = MLPClassifier(**SMALL, spread=Spread(2), warm_start=len(first) > len(then), engine="reference")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(part(X[: len(first)], rank, 2), part(first, rank, 2))
        go_on = estimator.fit if estimator.warm_start else estimator.partial_fit
        with pytest.raises(ValueError, match="classes") as error:
            go_on(part(X[: len(then)], rank, 2), part(then, rank, 2))
        said.append(str(error.value))
    return said[0], said[1]


def test_classes_are_compared_over_all_ranks():
    one, other = (outcome.value for outcome in run_ranks(lose_a_class, 2))
    assert one == other
    assert one[0].startswith(
        "warm_start can only be used where `y` has the same classes as in the previous call to fit"
    )
    assert one[1].startswith("`y` has classes not in `self.classes_`.")


def test_the_parameter_is_like_the_others():
    estimator = MLPRegressor(spread=Spread(2, "late"))
    assert clone(estimator).get_params()["spread"] == Spread(2, "late")
    assert "spread=Spread(shards=2,sync='late'" in "".join(repr(estimator).split())
    assert "spread" not in repr(MLPRegressor())


def test_one_shard_is_learning_without_a_spread(engine: str):
    one, other = (learn("classes apart", 0, 1, spread=spread, engine=engine) for spread in (Spread(), None))
    assert same_arrays(one, other)


def test_a_process_of_torchrun_has_to_join_the_group_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ValueError, match=r"call torch\.distributed\.init_process_group\(\) first"):
        MLPRegressor(spread=Spread(2)).fit(X, VALUES)
