"""``fit`` over ranks: the same bits as one process that holds all shards, and mistakes that all ranks raise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from ranks import run_ranks
from small_problem import X, Y, copy_of, net, same
from wholebatch import FeedForward, Loss, Optimizer, Training
from wholebatch.feedforward import memory
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.held import Held
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.reference import ReferenceEngine
from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.feedforward.spread import Spread
from wholebatch.feedforward.training import State, fit
from wholebatch.kernels import native_available

SHARDS = 4
HELD_X, HELD_Y = X[::3] * 1.1, Y[::3]
WEIGHT = np.linspace(0.5, 2, len(X))
Run = tuple[list[dict[str, float]], int | None, dict[str, Tensor], list[tuple[int, int, float]]]

TRAINING = Training(epochs=6, batch_size=16, patience=2, min_delta=0.02, watch="loss", schedule="cosine", seed=5)
ENGINES = ["reference", *(["native"] if native_available() else [])]


def part(values: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """The rows of a rank's shards."""
    bounds, each = shard_bounds(len(values), SHARDS), SHARDS // ranks
    return values[bounds[rank * each] : bounds[(rank + 1) * each]]


def half(values: np.ndarray, rank: int) -> np.ndarray:
    """45 of the 90 rows."""
    return values[45 * rank : 45 * (rank + 1)]


def run(rank: int, ranks: int, group: str | None, engine: str, **more: Any) -> Run:
    """A training with weights, dropout and early stopping; the last rank has no rows to validate on."""
    model = net(dropout=0.2)
    if rank:  # what the others begin with does not count
        torch.nn.init.constant_(model.layers[0].weight, 7.0)  # type: ignore[arg-type]
    cuts = [0, 13, *[30] * (ranks - 1)] if ranks > 1 else [0, 30]
    said: list[tuple[int, int, float]] = []
    settings: dict[str, Any] = {
        "sample_weight": part(WEIGHT, rank, ranks),
        "validation": (HELD_X[cuts[rank] : cuts[rank + 1]], HELD_Y[cuts[rank] : cuts[rank + 1]]),
        "optimizer": Optimizer("adamw", 0.02, weight_decay=0.1, max_grad_norm=1.0),
        "training": TRAINING,
        "spread": Spread(SHARDS),
        "process_group": group,
        **more,
    }
    history = model.fit(
        part(X, rank, ranks), part(Y, rank, ranks), engine=engine, progress=lambda *of: said.append(of), **settings
    )
    assert not model.training
    rows = [{n: v for n, v in row.items() if "second" not in n} for row in history.epochs]
    return rows, history.best_epoch, copy_of(model), said


def run_each(rank: int, ranks: int, group: str | None) -> list[Run]:
    return [run(rank, ranks, group, engine) for engine in ENGINES]


@pytest.fixture(scope="module")
def alone() -> list[Run]:
    return run_each(0, 1, None)


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_has_the_history_and_the_net_of_one_process(ranks: int, alone: list[Run]):
    for outcome in run_ranks(run_each, ranks, ranks, "world"):
        for (rows, best, state, said), (whole_rows, whole_best, whole_state, _) in zip(
            outcome.value, alone, strict=True
        ):
            assert rows == whole_rows
            assert best == whole_best
            assert same(state, whole_state)
            assert all(1 <= epoch <= len(rows) and 0 < done <= len(X) for epoch, done, _ in said)


def test_the_engines_agree_over_shards(alone: list[Run]):
    """Early stopping and all: what their tests show of an epoch shows in a whole training."""
    for rows, best, state, _ in alone[1:]:
        assert best == alone[0][1]
        assert len(rows) == len(alone[0][0])
        for row, other in zip(rows, alone[0][0], strict=True):
            assert row == pytest.approx(other, rel=1e-9)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, alone[0][2][name], rtol=1e-8, atol=1e-9)


def test_one_shard_is_training_without_a_spread(engine: str):
    models = [net(dropout=0.2) for _ in range(2)]
    training = Training(epochs=2, batch_size=16)
    with_spread = models[0].fit(X, Y, training=training, engine=engine, spread=Spread(), process_group=None)
    without = models[1].fit(X, Y, training=training, engine=engine)
    assert [row["loss"] for row in with_spread.epochs] == [row["loss"] for row in without.epochs]
    assert same(copy_of(models[0]), copy_of(models[1]))


def fit_uneven(rank: int, ends: list[int], engine: str) -> dict[str, Tensor]:
    """60 rows and 30, and ranks without any."""
    model, rows = net(), slice(ends[rank], ends[rank + 1])
    training = Training(epochs=2, batch_size=7, shuffle=False)
    model.fit(X[rows], Y[rows], training=training, engine=engine, spread=Spread())
    return copy_of(model)


def test_a_rank_without_rows_changes_nothing(engine: str):
    (one, other), (first, second, third) = (
        [outcome.value for outcome in run_ranks(fit_uneven, len(ends) - 1, ends, engine)]
        for ends in ([0, 60, 90], [0, 0, 60, 90])
    )
    assert same(one, other)
    assert same(first, one)
    assert same(second, one)
    assert same(third, one)


def resume(rank: int, ranks: int, group: str | None, engine: str) -> bool:
    """Whether a run that goes on from the state after 3 of 5 epochs ends as the run that was not stopped."""
    states: list[State] = []
    settings: dict[str, Any] = {"engine": engine, "spread": Spread(SHARDS, "late"), "process_group": group}
    training = Training(epochs=5, batch_size=16, seed=5)
    model, other = net(dropout=0.2), net()
    x, y = part(X, rank, ranks), part(Y, rank, ranks)
    model.fit(x, y, training=training, after_epoch=states.append, **settings)
    other = net(dropout=0.2, seed=rank)
    other.fit(x, y, training=training, resume=states[2], **settings)
    return same(copy_of(model), copy_of(other))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_stopped_ends_with_the_same_bits(engine: str):
    assert [outcome.value for outcome in run_ranks(resume, 2, 2, "world", engine)] == [True, True]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "columns": ({"x": X[:45, :5]}, "on rank 1 of 2: x has shape (45, 5); this net takes (N, 6)"),
    "classes": ({"y": np.full(45, 3)}, "on rank 1 of 2: y has classes 3..3, the net has 3 outputs (0..2)"),
    "text": ({"x": "a table"}, "on rank 1 of 2: could not convert string to float: 'a table'"),
    "lengths": ({"y": Y[:10]}, "on rank 1 of 2: y has shape (10,), x has 45 rows"),
    "weights": ({"sample_weight": np.full(45, -1.0)}, "on rank 1 of 2: sample weights must not be negative"),
    "held": ({"validation": (X, np.full(90, -1))}, "on rank 1 of 2: y has classes -1..-1"),
    "seed": ({"training": Training(seed=1)}, "the ranks disagree on the training: rank 0 has Training(epochs=100"),
    "loss": ({"loss": Loss("cross_entropy", alpha=1.0)}, "the ranks disagree on the loss: rank 0 has Loss("),
    "rate": ({"optimizer": Optimizer(learning_rate=0.5)}, "the ranks disagree on the optimizer"),
    "sync": ({"spread": Spread(2, "none")}, "the ranks disagree on the spread"),
    "validation": ({"validation": None}, "the ranks disagree on validation: rank 0 has rows held out, rank 1 has none"),
    "net": ({"model": {"momentum": 0.5}}, "the ranks disagree on the net: rank 0 has Architecture("),
}
EVERYWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "patience": (
        {"training": Training(patience=2), "validation": None},
        "patience=2 needs validation rows to watch; pass validation=(x, y)",
    ),
    "shards": ({"spread": Spread(3)}, "3 shards cannot be dealt to 2 ranks in equal numbers"),
    "rows": ({"x": X[:0], "y": Y[:0]}, "x has no rows on any rank"),
    "row": ({"x": X[:1], "y": Y[:1], "training": Training(batch_size=1)}, "batch_size is 1; batch norm needs"),
    "zeros": ({"sample_weight": np.zeros(45)}, "sample weights must not be negative, nor all zero; they are all zero"),
    "engine": ({"engine": "fast"}, "engine is 'fast'; choose 'auto', 'native', 'reference' or 'device'"),
    "threads": ({"n_threads": 0}, "n_threads is 0; it must be at least 1"),
}


def mistake(rank: int) -> dict[str, str]:
    """What each mistake says here: made by rank 1 alone, or by all."""
    said = {}
    for made_by_all, mistakes in ((False, MISTAKES), (True, EVERYWHERE)):
        for name, (change, _) in mistakes.items():
            settings: dict[str, Any] = {
                "x": half(X, rank),
                "y": half(Y, rank),
                "spread": Spread(2),
                "validation": (X, Y),
                "engine": "reference",
                **(change if made_by_all or rank == 1 else {}),
            }
            model = net(**settings.pop("model", {}))
            with pytest.raises(ValueError, match=r"\w") as error:
                fit(model, settings.pop("x"), settings.pop("y"), **settings)
            said[name] = str(error.value)
    # Nobody waits for anybody after all this.
    settings = {"spread": Spread(2), "training": Training(epochs=1)}
    fit(net(), half(X, rank), half(Y, rank), **settings)
    return said


def test_a_mistake_is_told_in_the_same_words_on_every_rank():
    said = [outcome.value for outcome in run_ranks(mistake, 2)]
    assert said[0] == said[1]
    for name, (_, words) in (MISTAKES | EVERYWHERE).items():
        assert said[0][name].startswith(words), name


def lack_memory(rank: int) -> str:
    if rank == 1:
        memory.free_bytes = lambda: 5_000_000  # type: ignore[assignment]
    model = FeedForward(6, (600, 600), 3)
    with pytest.raises(ValueError, match="of memory") as error:
        model.fit(half(X, rank), half(Y, rank), spread=Spread(), engine="reference", optimizer=Optimizer("sgd"))
    return str(error.value)


def test_memory_is_counted_for_all_ranks_of_a_host():
    """The reference: the net twice for each of two ranks, and the gradients of two shards; float32, 367,803 numbers."""
    said = [outcome.value for outcome in run_ranks(lack_memory, 2)]
    assert said[0] == said[1]
    assert said[0].startswith("on rank 1 of 2: training a net of sizes 6-600-600-3 by mini-batches of 45 on each of 2")
    needed = int(said[0].split("needs ")[1].split(" bytes")[0].replace(",", ""))
    numbers = 6 * 600 + 600 * 600 + 600 * 3 + 3 + 2 * 1200
    batch = 2 * (6 + 2 * 1200 + 3) * 45
    assert 4 * (6 * numbers + batch) <= needed <= 1.05 * 4 * (6 * numbers + batch)


def differ_in_state(rank: int) -> str:
    states: list[State] = []
    settings: dict[str, Any] = {"spread": Spread(), "training": Training(epochs=3), "engine": "reference"}
    x, y = half(X, rank), half(Y, rank)
    net_ = net()
    net_.fit(x, y, after_epoch=states.append, **settings)
    with pytest.raises(ValueError, match="the state to resume") as error:
        net_.fit(x, y, resume=states[rank], **settings)
    return str(error.value)


def test_ranks_that_resume_from_different_epochs_are_refused():
    said = [outcome.value for outcome in run_ranks(differ_in_state, 2)]
    assert said[0] == said[1]
    assert "rank 0 has step 1, digest" in said[0]
    assert "rank 1 has step 2, digest" in said[0]


def interrupt(rank: int) -> bool:
    """Ctrl-C on rank 0 after the first epoch; whether the net is as it was then."""
    model, states = net(), list[State]()

    def stop(state: State) -> None:
        states.append(state)
        if rank == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(half(X, rank), half(Y, rank), spread=Spread(), engine="reference", after_epoch=stop)
    return same(copy_of(model), {n.removeprefix("model."): t for n, t in states[0].tensors.items() if "model." in n})


def test_the_other_ranks_learn_of_an_interrupt():
    outcomes = run_ranks(interrupt, 2)
    assert outcomes[0].value
    assert outcomes[1].error.startswith("MeetingError: ")
    assert "rank 0" in outcomes[1].error


def weigh_some(rank: int) -> dict[str, Tensor]:
    """Weights on rank 1 alone, against weights of 1 beside them: 0."""
    models = [net(), net()]
    own = half(WEIGHT, 1) if rank else None
    training = Training(epochs=1, batch_size=16)
    for model, weight in zip(models, (own, np.ones(45) if own is None else own), strict=True):
        settings: dict[str, Any] = {"sample_weight": weight, "spread": Spread(), "training": training}
        model.fit(half(X, rank), half(Y, rank), engine="reference", **settings)
    after = copy_of(models[1])
    return {name: tensor - after[name] for name, tensor in copy_of(models[0]).items()}


def test_rows_without_weights_count_once_where_other_ranks_have_some():
    for outcome in run_ranks(weigh_some, 2):
        assert not any(difference.any() for difference in outcome.value.values())


class Doubling(ReferenceEngine):
    """An engine whose outputs tell with which rows they were predicted."""

    def predict(self, x: object) -> np.ndarray:
        assert isinstance(x, np.ndarray | scipy.sparse.csr_matrix | scipy.sparse.csr_array)
        rows = x.toarray() if scipy.sparse.issparse(x) else x
        blocks = [rows[start : start + 8] for start in range(0, len(rows), 8)]
        out = [np.stack([block[:, 0], *[np.full(len(block), block.sum())] * 2], 1) for block in blocks]
        return np.concatenate([np.zeros((0, 3)), *out])


def rate_blocks(rank: int, cuts: list[int], sparse: bool) -> tuple[int, tuple[float, float]]:
    rows = slice(cuts[rank], cuts[rank + 1])
    x: Any = scipy.sparse.csr_matrix(HELD_X[rows]) if sparse else HELD_X[rows]
    peers = Peers(Spread(), "world")
    held = Held(Data(x, HELD_Y[rows]), Loss("cross_entropy"), peers, 8)
    return len(held), held.evaluate(Doubling(net(), Loss("cross_entropy"), Optimizer("sgd"), peers=peers))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("cuts", "predicted"),
    [
        ([0, 10, 20, 30], [16, 8, 6]),
        ([0, 0, 30, 30], [0, 30, 0]),
        ([0, 3, 5, 30], [8, 0, 22]),
        ([0, 1, 2, 30], [8, 0, 22]),
        ([0, 8, 16, 30], [8, 8, 14]),
    ],
)
def test_validation_rows_are_predicted_in_the_blocks_of_the_whole(cuts: list[int], predicted: list[int], sparse: bool):
    """Wherever ranks cut them: an output that depends on all rows of its block is the same."""
    whole = Held(Data(HELD_X, HELD_Y), Loss("cross_entropy"))
    expected = whole.evaluate(Doubling(net(), Loss("cross_entropy"), Optimizer("sgd")))
    outcomes = [outcome.value for outcome in run_ranks(rate_blocks, 3, cuts, sparse)]
    assert [rows for rows, _ in outcomes] == predicted
    assert [rating for _, rating in outcomes] == [expected] * 3


def test_a_net_of_other_settings_is_not_changed_by_an_error():
    model = net()
    before = copy_of(model)
    with pytest.raises(ValueError, match="patience=1 needs validation"):
        fit(model, X, Y, training=replace(TRAINING, patience=1), spread=Spread(3), process_group=None)
    assert same(before, copy_of(model))
    assert isinstance(model, FeedForward)
