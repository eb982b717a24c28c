"""Epochs in both engines: schedules, validation, early stopping, resuming, interrupts, losses that are not finite."""

from __future__ import annotations

import json
import math
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor

from oracle import Oracle, engine_of, make_data, make_model
from wholebatch import FeedForward, Loss, Optimizer, Training
from wholebatch.feedforward.data import batch_offsets, prepare, shuffled
from wholebatch.feedforward.engine import NonFiniteLossError, make_engine
from wholebatch.feedforward.evaluation import default_loss, score
from wholebatch.feedforward.training import History, State, fit

RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 6))
Y = (X @ RNG.standard_normal((6, 3))).argmax(1)


def net(**more: Any) -> FeedForward:
    return make_model((6, 17, 3), "batch", "before", "tanh", dtype=torch.float64, **more)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def copy_of(model: FeedForward) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Schedules


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


# Validation and early stopping


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
    with pytest.raises(ValueError, match=r"fit trains on the CPU, the net is on meta; use net\.cpu\(\)"):
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


# State and resuming


def test_a_state_does_not_change_as_training_goes_on(engine: str):
    model = net()
    states: list[State] = []
    model.fit(X, Y, training=Training(epochs=3, batch_size=30), engine=engine, after_epoch=states.append)
    assert [len(state.history.epochs) for state in states] == [1, 2, 3]
    assert [state.step for state in states] == [3, 6, 9]
    weights = [state.tensors["model.layers.0.weight"] for state in states]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], model.state_dict()["layers.0.weight"])


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_resumed_run_is_an_undisturbed_one(engine: str, kind: Any):
    """With early stopping, schedule and dropout; the plain part goes through JSON as a checkpoint's would."""
    optimizer = Optimizer(kind, 0.05, momentum=0.9 if kind == "sgd" else 0.0)
    settings: dict[str, Any] = {
        "validation": (X[60:], Y[60:]),
        "optimizer": optimizer,
        "training": Training(epochs=6, batch_size=20, patience=5, schedule="one_cycle", seed=5),
        "engine": engine,
    }
    whole = net(dropout=0.3)
    states: list[State] = []
    expected = whole.fit(X[:60], Y[:60], after_epoch=states.append, **settings)
    for pause in (1, 4, 6):
        plain = json.loads(json.dumps(states[pause - 1].values()))
        resumed = State(History(**plain["history"]), plain["step"], states[pause - 1].tensors)
        again: list[State] = []
        model = FeedForward.of(whole.architecture, dtype=torch.float64)
        history = model.fit(X[:60], Y[:60], resume=resumed, after_epoch=again.append, **settings)
        assert len(again) == 6 - pause
        timeless = [{k: v for k, v in row.items() if "second" not in k} for row in history.epochs]
        assert timeless == [{k: v for k, v in row.items() if "second" not in k} for row in expected.epochs]
        assert (history.best_epoch, history.best_score) == (expected.best_epoch, expected.best_score)
        assert same(copy_of(model), copy_of(whole))
        assert len(resumed.history.epochs) == pause  # the state that was given stays as it is


def test_a_state_of_another_optimizer_is_refused(engine: str):
    states: list[State] = []
    net().fit(X, Y, training=Training(epochs=1, batch_size=30), engine=engine, after_epoch=states.append)
    sgd = Optimizer("sgd", 0.1, momentum=0.5)
    with pytest.raises(ValueError, match=r"10 tensors kept and 5 needed.*exp_avg\.layers\.0\.weight"):
        net().fit(X, Y, training=Training(epochs=2, batch_size=30), engine=engine, optimizer=sgd, resume=states[0])


# Progress and interrupts


def test_progress_counts_examples(engine: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wholebatch.feedforward.reference.PROGRESS_SECONDS", 0.0)
    model = make_model((6, 300, 300, 3), "batch", "before", "tanh", dtype=torch.float64)
    examples = 10000 if engine == "native" else 600  # the native engine tells after a tenth of a second
    rows = np.random.default_rng(0).integers(0, 90, examples)
    told: list[tuple[int, int, float]] = []

    def progress(epoch: int, done: int, mean: float) -> None:
        told.append((epoch, done, mean))

    history = model.fit(
        X[rows], Y[rows], training=Training(epochs=2, batch_size=20), engine=engine, progress=progress, n_threads=1
    )
    assert {epoch for epoch, _, _ in told} == {1, 2}
    for epoch in (1, 2):
        done = [examples for number, examples, _ in told if number == epoch]
        assert done == sorted(set(done))
        assert 0 < done[0] <= done[-1] <= examples
    assert all(math.isfinite(mean) and mean > 0 for _, _, mean in told)
    assert len(history.epochs) == 2


def test_an_error_in_progress_leaves_the_last_whole_epoch(engine: str):
    class OwnError(Exception):
        pass

    model = make_model((6, 300, 300, 3), "batch", "before", "tanh", dtype=torch.float64)
    rows = np.random.default_rng(0).integers(0, 90, 20000 if engine == "native" else 4000)
    states: list[State] = []

    def progress(epoch: int, done: int, mean: float) -> None:
        if epoch == 2:
            raise OwnError

    with pytest.raises(OwnError):
        model.fit(
            X[rows], Y[rows], training=Training(epochs=2, batch_size=100), engine=engine, progress=progress,
            after_epoch=states.append, n_threads=1,
        )  # fmt: skip
    kept = {n.removeprefix("model."): t for n, t in states[0].tensors.items() if n.startswith("model.")}
    assert same(copy_of(model), kept)
    assert not model.training


INTERRUPTED = """
import sys
import numpy as np, torch
from oracle import engine_of, make_data, make_model
from wholebatch import Loss, Optimizer

torch.set_num_threads(1)
loss, optimizer = Loss("cross_entropy"), Optimizer("adam", 1e-4)
model = make_model((64, 256, 256, 5), "batch", "before", "relu", dtype=torch.float32, dropout=0.1)
data = make_data(model, loss, 2000)
runner = engine_of(sys.argv[1], model, loss, optimizer, n_threads=2)

def epoch(examples, progress=None):
    order = np.arange(examples) % 2000
    offsets = np.arange(0, examples + 1, int(sys.argv[2]))
    runner.train_epoch(data, order, offsets, np.full(len(offsets) - 1, 1e-4), progress)

def everything():
    return {**model.state_dict(), **runner.optimizer_state, "step": torch.tensor(runner.step)}

epoch(2000)
before = {name: tensor.clone() for name, tensor in everything().items()}
try:
    epoch(20_000_000, lambda done, mean: print("RUNNING", done, flush=True))
    print("FINISHED", flush=True)
except KeyboardInterrupt:
    print("INTERRUPTED", flush=True)
    print("KEPT", all(torch.equal(tensor, before[name]) for name, tensor in everything().items()), flush=True)
    epoch(2000)
    print("GOES ON", any(not torch.equal(tensor, before[name]) for name, tensor in everything().items()), flush=True)
"""


@pytest.mark.parametrize("batch", [100, 2000])
def test_ctrl_c_answers_at_once_and_leaves_the_last_whole_epoch(
    engine: str, batch: int, request: pytest.FixtureRequest
):
    """In the midst of an epoch of minutes. Promised is a second; five are allowed for a machine that is busy."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, engine, str(batch)],
        cwd=request.path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("RUNNING"), first
        process.send_signal(signal.SIGINT)
        sent, waited, lines = time.monotonic(), math.inf, []
        for line in process.stdout:
            if line.startswith("INTERRUPTED"):
                waited = time.monotonic() - sent
            if not line.startswith("RUNNING"):
                lines.append(line.split())
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert lines == [["INTERRUPTED"], ["KEPT", "True"], ["GOES", "ON", "True"]]
    assert waited < 5


# Losses that are not finite


def rotten(engine: str, spoil: Callable[[FeedForward], None], **settings: Any) -> NonFiniteLossError:
    model = make_model((6, 9, 7, 3), "batch", "before", "silu", dtype=torch.float64)
    spoil(model)
    before = copy_of(model)
    with pytest.raises(NonFiniteLossError) as caught:
        model.fit(X, Y, training=Training(epochs=3, batch_size=30, **settings), engine=engine)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert not model.training
    return caught.value


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_layer_where_it_first_appeared_is_named(engine: str, layer: int, value: float):
    def spoil(model: FeedForward) -> None:
        with torch.no_grad():
            model.parts()[layer - 1].linear.weight[2, 1] = value

    error = rotten(engine, spoil)
    assert (error.epoch, error.step, error.layer, error.layers) == (1, 1, layer, 3)
    assert f"not finite in epoch 1, step 1; the first value that is not finite appeared in layer {layer} of 3" in str(
        error
    )
    assert "Lower the learning rate, or clip the gradient" in str(error)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("role", ["weight", "bias"])
def test_a_norms_parameters_belong_to_their_layer(engine: str, layer: int, role: str):
    def spoil(model: FeedForward) -> None:
        with torch.no_grad():
            getattr(model.parts()[layer - 1].norm, role)[0] = float("nan")

    error = rotten(engine, spoil)
    assert (error.epoch, error.step, error.layer) == (1, 1, layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learning_rate_that_is_far_too_large(engine: str, dtype: torch.dtype):
    model = make_model((6, 9, 3), "none", "before", "relu", dtype=dtype)
    before = copy_of(model)
    with pytest.raises(NonFiniteLossError, match=r"not finite in epoch 1, step [2-9]; the first") as caught:
        model.fit(
            X,
            Y,
            training=Training(epochs=3, batch_size=10),
            optimizer=Optimizer("sgd", 1e200 if dtype == torch.float64 else 1e30),
            engine=engine,
        )
    assert same(copy_of(model), before)
    assert 1 <= caught.value.layer <= 2


def test_an_overflow_in_the_last_update_does_not_pass_for_a_trained_net(engine: str):
    """The loss of the only step is finite, its update is not: no later loss would tell."""
    model = make_model((6, 9, 3), "none", "before", "relu", dtype=torch.float32)
    before = copy_of(model)
    optimizer = Optimizer("sgd", 1e30)
    with pytest.raises(NonFiniteLossError, match="the update is not finite in epoch 1, step 1"):
        model.fit(X * 1e12, Y, training=Training(epochs=1, batch_size=90), optimizer=optimizer, engine=engine)
    assert same(copy_of(model), before)


def test_the_step_is_counted_within_the_epoch(engine: str):
    """Rows of a size whose square overflows, where the order is known: in the third mini-batch of the first epoch."""
    model = make_model((1, 4, 1), "none", "before", "identity", dtype=torch.float32)
    x = np.ones((40, 1))
    y = np.ones(40)
    y[25] = 1e30
    with pytest.raises(NonFiniteLossError) as caught:
        model.fit(
            x,
            y,
            training=Training(epochs=2, batch_size=10, shuffle=False),
            optimizer=Optimizer("sgd", 0.0),
            engine=engine,
        )
    assert (caught.value.epoch, caught.value.step, caught.value.layer) == (1, 3, 2)


def test_gradients_tell_too_and_leave_the_statistics(engine: str):
    loss = Loss("cross_entropy")
    model = make_model((6, 9, 7, 3), "batch", "before", "tanh", dtype=torch.float64)
    data = make_data(model, loss, 20)
    with torch.no_grad():
        model.parts()[1].linear.weight[0, 0] = float("inf")
    before = copy_of(model)
    with pytest.raises(NonFiniteLossError, match=r"in step 1; .* layer 2 of 3"):
        engine_of(engine, model, loss).gradients(data)
    assert same(copy_of(model), before)


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(NonFiniteLossError(3, 2, 4).in_epoch(5)))
    assert isinstance(error, NonFiniteLossError)
    assert (error.epoch, error.step, error.layer, error.layers) == (5, 3, 2, 4)
    assert str(error) == str(NonFiniteLossError(3, 2, 4, 5))
    assert "the input" in str(NonFiniteLossError(1, 0, 2))


def test_fit_is_the_method(engine: str):
    """``model.fit`` and ``training.fit`` are one; the engine's name reaches make_engine."""
    one, other = net(), net()
    training = Training(epochs=1, batch_size=30)
    fit(one, X, Y, training=training, engine=engine)
    other.fit(X, Y, training=training, engine=engine)
    assert same(copy_of(one), copy_of(other))
    made = make_engine(one, Loss("mse"), Optimizer(), engine=engine)
    assert type(made).__name__ == {"reference": "ReferenceEngine", "native": "NativeEngine"}[engine]
