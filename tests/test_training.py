"""Epochs in both engines: schedules against torch's, a whole fit against the oracle's, validation, early stopping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score

from oracle import Oracle, make_model
from small_problem import RNG, X, Y, copy_of, net, same
from wholebatch import FeedForward, Loss, Optimizer, Training
from wholebatch.feedforward.data import batch_offsets, prepare, shuffled
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.evaluation import default_loss, score
from wholebatch.feedforward.training import State, fit


def by_torch(make: Callable[[torch.optim.Optimizer], Any], epochs: int, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20)),
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=20)),
        ("exponential", lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=5, gamma=0.9)),
    ],
)
def test_schedules_are_torchs(schedule: Any, make: Any):
    """Four epochs of five steps."""
    training = Training(epochs=4, schedule=schedule, decay=0.9)
    given = np.concatenate([training.learning_rates(0.5, epoch, 5) for epoch in range(4)])
    np.testing.assert_allclose(given, by_torch(make, 4, 5), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 5), (2, 5), (7, 13), (100, 3)])
def test_one_cycle_rises_to_the_rate_and_falls_to_0(epochs: int, steps: int):
    training = Training(epochs=epochs, schedule="one_cycle")
    rates = np.concatenate([training.learning_rates(0.5, epoch, steps) for epoch in range(epochs)])
    top = int(rates.argmax())
    assert rates.max() <= 0.5
    assert rates.max() == pytest.approx(0.5) or epochs * steps < 4
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert (rates > 0).all()
    assert top <= max(1, 0.3 * epochs * steps)
    assert epochs * steps < 50 or rates[-1] < 1e-3


def test_warmup_raises_any_schedule_from_0():
    plain = Training(epochs=2, schedule="cosine").learning_rates(0.5, 0, 10)
    warm = Training(epochs=2, schedule="cosine", warmup_steps=4).learning_rates(0.5, 0, 10)
    np.testing.assert_allclose(warm, plain * np.minimum(1, np.arange(1, 11) / 4))


def test_the_rates_reach_the_engine(engine: str):
    """A whole fit against the oracle's loop: shuffling, schedule, remainder and history."""
    loss, optimizer = Loss("cross_entropy"), Optimizer("adam", 0.02, eps=0.01)
    training = Training(epochs=3, batch_size=20, schedule="linear", warmup_steps=2, seed=11)
    model = net(dropout=0.25)
    oracle = Oracle(model, loss, optimizer, seed=11)
    data = prepare(X, Y, None, model.architecture, loss, torch.float64)
    offsets = list(batch_offsets(90, 20, model.architecture))
    losses = []
    for epoch in range(3):
        s = np.arange(epoch * 5, epoch * 5 + 5)
        rates = 0.02 * (1 - s / 15) * np.minimum(1, (s + 1) / 2)
        losses.append(oracle.train(data, shuffled(90, 11, epoch), offsets, list(rates)))
    history = model.fit(X, Y, loss=loss, optimizer=optimizer, training=training, engine=engine)
    assert [row["loss"] for row in history.epochs] == pytest.approx(losses, rel=1e-10)
    assert [row["epoch"] for row in history.epochs] == [1, 2, 3]
    assert history.epochs[-1]["learning_rate"] == pytest.approx(0.02 / 15)
    assert all(row["seconds"] > 0 and row["examples_per_second"] > 0 for row in history.epochs)
    for name, tensor in oracle.state().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)
    assert not model.training


def test_without_shuffling_rows_come_in_order(engine: str):
    loss, optimizer = Loss("mse"), Optimizer("sgd", 0.1)
    model = make_model((6, 1), "none", "before", "relu", dtype=torch.float64)
    oracle = Oracle(model, loss, optimizer)
    data = prepare(X, X[:, 0], None, model.architecture, loss, torch.float64)
    expected = oracle.train(data, np.arange(90), [0, 40, 80, 90], [0.1] * 3)
    training = Training(epochs=1, batch_size=40, shuffle=False)
    history = model.fit(X, X[:, 0], loss=loss, optimizer=optimizer, training=training, engine=engine)
    assert history.epochs[0]["loss"] == pytest.approx(expected, rel=1e-12)


def test_validation_is_in_eval_mode(engine: str):
    """Loss and score of the rows held out, by running statistics, without dropout; weights count in both."""
    model = net(dropout=0.5)
    weight = np.linspace(0.5, 2.0, 30)
    history = model.fit(
        X[:60], Y[:60], validation=(X[60:], Y[60:], weight), training=Training(epochs=2, batch_size=20), engine=engine
    )
    with torch.no_grad():
        out = model(torch.from_numpy(X[60:]))
    each = torch.nn.functional.cross_entropy(out, torch.from_numpy(Y[60:]), reduction="none").numpy()
    assert history.epochs[-1]["validation_loss"] == pytest.approx((each * weight).sum() / weight.sum(), rel=1e-10)
    accuracy = accuracy_score(Y[60:], out.argmax(1).numpy(), sample_weight=weight)
    assert history.epochs[-1]["validation_score"] == pytest.approx(accuracy)


def test_scores():
    architecture = net().architecture
    out = RNG.standard_normal((20, 3))
    values = prepare(X[:20], out + 0.3 * RNG.standard_normal((20, 3)), None, architecture, Loss("mse"), torch.float64)
    assert score(out, values, Loss("mse")) == pytest.approx(r2_score(values.y, out))
    labels = prepare(X[:20], (out > 0).astype(int), None, architecture, Loss("bce"), torch.float64)
    assert score(out, labels, Loss("bce")) == 1.0
    out[0, 0] = -out[0, 0]  # one label of one row: the row counts as missed
    assert score(out, labels, Loss("bce")) == 0.95


def test_default_losses():
    assert default_loss(np.array([0, 1])).kind == "cross_entropy"
    assert default_loss(torch.tensor([0, 1])).kind == "cross_entropy"
    assert default_loss([0.5, 1.0]).kind == "mse"
    assert default_loss(np.zeros((2, 2), int)).kind == "mse"


@pytest.mark.parametrize("watch", ["score", "loss"])
def test_early_stopping_goes_back_to_the_best_epoch(engine: str, watch: Any):
    """A rate that rises and rises spoils the net after a while; what is kept is the best epoch as it was."""
    model = net()
    states: list[State] = []
    training = Training(epochs=60, batch_size=30, patience=4, watch=watch, warmup_steps=150)
    history = model.fit(
        X[:60], Y[:60], validation=(X[60:], Y[60:]), training=training, optimizer=Optimizer("sgd", 300.0),
        engine=engine, after_epoch=states.append,
    )  # fmt: skip
    rows = history.epochs
    values = [row["validation_score"] if watch == "score" else -row["validation_loss"] for row in rows]
    assert history.stopped_early
    assert len(rows) < 60
    assert history.best_epoch == int(np.argmax(values)) + 1 == len(rows) - 4
    assert history.best_score == rows[history.best_epoch - 1]["validation_score"]
    best = states[history.best_epoch - 1].tensors
    assert same(copy_of(model), {n.removeprefix("model."): t for n, t in best.items() if n.startswith("model.")})
    assert not same(copy_of(model), {n.removeprefix("model."): t for n, t in states[-1].tensors.items() if n[0] == "m"})


def test_min_delta_asks_for_more_than_a_little(engine: str):
    def epochs(min_delta: float) -> int:
        training = Training(epochs=12, batch_size=30, patience=3, watch="loss", min_delta=min_delta)
        history = net().fit(X, Y, validation=(X, Y), training=training, optimizer=Optimizer("sgd", 1e-3), engine=engine)
        return len(history.epochs)

    assert epochs(0.0) == 12
    assert epochs(10.0) == 4  # the first is the best, and three more are waited for


def test_the_best_epoch_may_be_the_last(engine: str):
    model = net()
    history = model.fit(
        X, Y, validation=(X, Y), training=Training(epochs=4, batch_size=30, patience=3, watch="loss"), engine=engine
    )
    assert history.best_epoch == 4
    assert not history.stopped_early


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training": Training(patience=3)}, "patience=3 needs validation rows"),
        ({"validation": (X[:, :5], Y)}, r"x has shape \(90, 5\)"),
        ({"loss": Loss("mse"), "y": X[:, :3], "validation": (X[:1], X[:1, :3])}, "validation has 1 row; R\\^2"),
        ({"engine": "gpu"}, "engine is 'gpu'; choose"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"split": "rows"}, "split is 'rows'; choose one of 'auto', 'example', 'neuron'"),
        ({"training": Training(batch_size=1)}, "batch_size is 1; batch norm needs"),
        ({"x": X[:1], "y": Y[:1]}, "batch norm needs at least 2 examples"),
    ],
)
def test_what_cannot_be_trained_is_told_before_it_starts(arguments: dict[str, Any], message: str):
    model = net()
    before = copy_of(model)
    settings = {"x": X, "y": Y, "engine": "reference", **arguments}
    with pytest.raises(ValueError, match=message):
        model.fit(settings.pop("x"), settings.pop("y"), **settings)
    assert same(copy_of(model), before)


def test_a_net_elsewhere_is_told():
    with pytest.raises(ValueError, match=r"on the CPU or on one GPU, this one is on meta; use net\.cpu\(\)"):
        FeedForward(6, (4,), 3, device="meta").fit(X, Y)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs is 0; it must be a whole number of at least 1"),
        ("epochs", True, "epochs is True"),
        ("batch_size", 2.5, "batch_size is 2.5"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**64, "must be below 2\\*\\*64"),
        ("warmup_steps", -1, "warmup_steps is -1"),
        ("schedule", "steps", "schedule is 'steps'; choose one of 'constant'"),
        ("watch", "time", "watch is 'time'"),
        ("decay", 0.0, "decay is 0.0"),
        ("decay", 1.5, "decay is 1.5"),
        ("patience", 0, "patience is 0"),
        ("min_delta", float("nan"), "min_delta is nan"),
    ],
)
def test_impossible_settings(name: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Training(**{name: value})


def test_fit_is_the_method(engine: str):
    """``model.fit`` and ``training.fit`` are one; the engine's name reaches make_engine."""
    one, other = net(), net()
    training = Training(epochs=1, batch_size=30)
    fit(one, X, Y, training=training, engine=engine)
    other.fit(X, Y, training=training, engine=engine)
    assert same(copy_of(one), copy_of(other))
    made = make_engine(one, Loss("mse"), Optimizer(), engine=engine)
    assert type(made).__name__ == f"{engine.title()}Engine"
