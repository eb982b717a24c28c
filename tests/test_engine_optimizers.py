"""Steps of SGD, Adam and AdamW in both engines against ``torch.optim`` in float64: parameters, statistics and state.

Tolerances. Float64: some steps of some hundred roundings each. Float32: the gradient is right to about
``24 * layers * sqrt(K)`` roundings (see test_engine_gradients); SGD moves parameters by learning rate times that.
Adam divides by the gradient's own size, so that a small gradient's error counts in full: an eps of 0.01 bounds that.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from oracle import EPS, PLACES, Oracle, assert_near, engine_of, make_data, make_model
from wholebatch import Loss, Optimizer
from wholebatch.feedforward.data import Data, batch_offsets

DTYPES = (torch.float32, torch.float64)
OPTIMIZERS = {
    "sgd": Optimizer("sgd", 0.1),
    "sgd, weight decay": Optimizer("sgd", 0.1, weight_decay=0.25),
    "sgd, momentum": Optimizer("sgd", 0.1, momentum=0.9),
    "sgd, momentum 1": Optimizer("sgd", 0.1, momentum=1.0),
    "sgd, nesterov": Optimizer("sgd", 0.1, momentum=0.75, nesterov=True, weight_decay=0.125),
    "adam": Optimizer("adam", 0.01, eps=0.01),
    "adam, weight decay": Optimizer("adam", 0.01, eps=0.01, betas=(0.5, 0.75), weight_decay=0.25),
    "adamw": Optimizer("adamw", 0.01, eps=0.01, weight_decay=0.25),
    "sgd, clipped": Optimizer("sgd", 0.1, momentum=0.9, max_grad_norm=0.25),
    "adam, clipped": Optimizer("adam", 0.01, eps=0.01, max_grad_norm=0.25),
    "adamw, not clipped": Optimizer("adamw", 0.01, eps=0.01, max_grad_norm=1e6),
}


def check(
    engine: str,
    optimizer: Optimizer,
    place: tuple[str, str],
    dtype: torch.dtype,
    steps: int,
    *,
    loss: Loss | None = None,
    sizes: tuple[int, ...] = (6, 17, 7, 3),
    batch: int = 21,
    dropout: float = 0.0,
    momentum: float | None = 0.1,
) -> None:
    """``steps`` steps, as two epochs where there are more than one, with other rates at each step."""
    loss = loss or Loss("cross_entropy", alpha=0.25)
    model = make_model(sizes, *place, "tanh", dtype=dtype, dropout=dropout, momentum=momentum)
    data = make_data(model, loss, batch * steps, weighted=True)
    oracle = Oracle(model, loss, optimizer, seed=5)
    runner = engine_of(engine, model, loss, optimizer, seed=5)
    order = np.random.default_rng(0).permutation(len(data))
    offsets = np.arange(0, len(data) + 1, batch)
    rates = optimizer.learning_rate * np.linspace(1.0, 0.5, steps)
    roundings = 24 * len(model.parts()) * max(*sizes, batch) ** 0.5 * EPS[dtype]
    for first, last in pairwise(sorted({0, (steps + 1) // 2, steps})):
        cut = offsets[first : last + 1]
        rows = order[cut[0] : cut[-1]]
        expected = oracle.train(data, rows, list(cut - cut[0]), rates[first:last])
        given = runner.train_epoch(data, rows, cut - cut[0], rates[first:last])
        assert given.loss == pytest.approx(expected, rel=roundings * (last + 1))
        assert (given.examples, given.steps) == (cut[-1] - cut[0], last - first)
    assert runner.step == oracle.step == steps
    allowed = 4 * roundings * steps
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=allowed, floor=allowed)
    if optimizer.state_names:
        assert_near(runner.optimizer_state, oracle.optimizer_state(), tolerance=0.0, floor=4 * allowed)
    else:
        assert runner.optimizer_state == {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(engine: str, name: str, steps: int, dtype: torch.dtype):
    check(engine, OPTIMIZERS[name], ("batch", "before"), dtype, steps)


@pytest.mark.parametrize("name", ["sgd, nesterov", "adam, weight decay", "adamw", "sgd, clipped"])
@pytest.mark.parametrize("place", PLACES)
def test_every_norm(engine: str, place: tuple[str, str], name: str):
    check(engine, OPTIMIZERS[name], place, torch.float64, 4, dropout=0.25)


@pytest.mark.parametrize("loss", [Loss("mse", alpha=0.5), Loss("huber"), Loss("bce", label_smoothing=0.125)])
def test_every_loss(engine: str, loss: Loss):
    check(engine, OPTIMIZERS["adam, weight decay"], ("batch", "after"), torch.float64, 4, loss=loss)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("steps", [1, 12])
def test_torchs_default_eps(engine: str, name: str, steps: int):
    """eps=1e-8 turns a gradient of 1e-15, which is rounding, into an update of learning rate times 1e-7."""
    optimizer = Optimizer(OPTIMIZERS[name].kind, 0.01)
    check(engine, optimizer, ("layer", "before"), torch.float64, steps, sizes=(5, 9, 3), batch=33)


def test_eps_hat_stands_before_the_bias_correction(engine: str):
    """Kingma and Ba's section 2: alpha_t = alpha sqrt(1-b2^t)/(1-b1^t), theta -= alpha_t m / (sqrt(v) + eps-hat)."""
    loss, optimizer = Loss("mse"), Optimizer("adam", 0.01, eps=0.05, eps_hat=True)
    model = make_model((5, 3), "none", "before", "tanh", dtype=torch.float64)
    data = make_data(model, loss, 20)
    runner = engine_of(engine, model, loss, optimizer)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    for t in range(1, 5):
        _, gradients = Oracle(model, loss).gradients(data)
        rate = 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        for name, g in gradients.items():
            m, v = moments[name]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            wanted[name] -= rate * m / (v.sqrt() + 0.05)
        runner.train_epoch(data, np.arange(20), np.array([0, 20]), np.array([0.01]))
        assert_near({n: p.detach() for n, p in model.named_parameters()}, wanted, tolerance=1e-13)


def test_clipping_is_over_all_parameters(engine: str):
    """The global 2-norm: a step of SGD at rate 1 is as long as max_grad_norm (times n / (n + 1e-6), as in torch)."""
    loss = Loss("mse", scale=100.0)
    for optimizer, clipped in ((Optimizer("sgd", 1.0, max_grad_norm=0.5), True), (Optimizer("sgd", 1.0), False)):
        model = make_model((5, 9, 3), "batch", "before", "tanh", dtype=torch.float64)
        data = make_data(model, loss, 20)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        engine_of(engine, model, loss, optimizer).train_epoch(data, np.arange(20), np.array([0, 20]), np.array([1.0]))
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        length = float((after - before).norm())
        if clipped:
            assert length == pytest.approx(0.5, rel=1e-6)
        else:
            assert length > 5


@pytest.mark.parametrize("place", [("batch", "before"), ("batch", "after"), ("none", "before")])
@pytest.mark.parametrize("rows", [2, 7, 8, 9, 63])
def test_an_epoch_with_a_remainder(engine: str, place: tuple[str, str], rows: int):
    """The last mini-batch of one example joins the one before it under batch norm, and stands alone without."""
    loss, optimizer = Loss("cross_entropy"), Optimizer("sgd", 0.1, momentum=0.5)
    model = make_model((6, 7, 3), *place, "tanh", dtype=torch.float64)
    data = make_data(model, loss, rows)
    offsets = batch_offsets(rows, 4, model.architecture)
    oracle = Oracle(model, loss, optimizer)
    plain = [*range(0, rows, 4), rows]
    merged = plain[:-2] + plain[-1:] if place[0] == "batch" and rows % 4 == 1 else plain
    order, rates = np.arange(rows)[::-1].copy(), np.full(len(merged) - 1, 0.1)
    expected = oracle.train(data, order, merged, rates)
    result = engine_of(engine, model, loss, optimizer).train_epoch(data, order, offsets, rates)
    assert result.loss == pytest.approx(expected, rel=1e-12)
    assert (result.examples, result.steps) == (rows, len(merged) - 1)
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=1e-12)


def test_an_epoch_may_repeat_and_leave_out_rows(engine: str):
    loss, optimizer = Loss("mse"), Optimizer("adam", 0.01, eps=0.01)
    model = make_model((6, 7, 3), "batch", "before", "silu", dtype=torch.float64)
    data = make_data(model, loss, 10)
    order, offsets, rates = np.array([3, 3, 9, 0, 1, 9, 9]), np.array([0, 3, 7]), np.array([0.01, 0.02])
    oracle = Oracle(model, loss, optimizer)
    expected = oracle.train(data, order, list(offsets), rates)
    assert engine_of(engine, model, loss, optimizer).train_epoch(data, order, offsets, rates).loss == pytest.approx(
        expected
    )
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=1e-12)


def test_state_moves_to_another_engine(engine: str):
    """Optimizer state and step are all that another engine needs to go on: here from one to the other and back."""
    loss, optimizer = Loss("cross_entropy"), Optimizer("adamw", 0.01, eps=0.01, weight_decay=0.1)
    model = make_model((6, 17, 3), "batch", "before", "tanh", dtype=torch.float64, dropout=0.3)
    data = make_data(model, loss, 40)
    order, offsets, rates = np.arange(40), np.array([0, 20, 40]), np.array([0.01, 0.01])
    oracle = Oracle(model, loss, optimizer, seed=9)
    first = engine_of(engine, model, loss, optimizer, seed=9)
    second = engine_of("reference", model, loss, optimizer, seed=9)
    for runner, other in ((first, second), (second, first), (first, second)):
        oracle.train(data, order, list(offsets), rates)
        runner.train_epoch(data, order, offsets, rates)
        other.optimizer_state = {name: tensor.clone() for name, tensor in runner.optimizer_state.items()}
        other.step = runner.step
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=1e-11)


def test_training_leaves_flags_gradients_and_data_alone(engine: str):
    loss, optimizer = Loss("mse"), Optimizer("sgd", 0.1)
    model = make_model((6, 7, 3), "batch", "before", "tanh", dtype=torch.float32).eval()
    kept = torch.ones_like(model.parts()[0].linear.weight)
    model.parts()[0].linear.weight.grad = kept
    data = make_data(model, loss, 12)
    copies = Data(data.x.copy(), None if data.y is None else data.y.copy())
    for array in (data.x, data.y):
        assert array is not None
        array.flags.writeable = False  # as pandas and memory maps hand it out
    runner = engine_of(engine, model, loss, optimizer)
    runner.train_epoch(data, np.arange(12), np.array([0, 6, 12]), np.array([0.1, 0.1]))
    runner.gradients(data)
    runner.predict(data.x)
    assert not model.training
    assert model.parts()[0].linear.weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    np.testing.assert_array_equal(data.x, copies.x)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_moments_too_small_for_normal_numbers_are_zero(n_threads: int) -> None:
    """Subnormal ones would take the processor a hundred cycles each; only the engine's own threads leave them out."""
    model = make_model((6, 17, 3), "none", "before", "tanh", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.zero_()
    loss, optimizer = Loss("mse"), Optimizer("adam", 1e-3)
    x = np.random.default_rng(0).normal(size=(21, 6)).astype(np.float32)
    data = Data(x, np.full((21, 3), 1e-19, np.float32))  # the last biases' squares: below 1e-37, of which a thousandth
    runner = engine_of("native", model, loss, optimizer, n_threads=n_threads)
    runner.train_epoch(data, np.arange(21), np.array([0, 21]), np.array([1e-3]))
    tiny = torch.finfo(torch.float32).tiny
    (first,) = (v for k, v in runner.optimizer_state.items() if k.startswith("exp_avg.") and k.endswith("2.bias"))
    assert 0.001 * float(first.abs().min() / 0.1) ** 2 > 1e-43  # float64: there is something to leave out
    assert bool((first.abs() > tiny).all())
    squares = torch.cat([v.flatten() for k, v in runner.optimizer_state.items() if k.startswith("exp_avg_sq")])
    assert squares.tolist() == [0.0] * len(squares)
    assert np.float32(1e-40) * np.float32(0.5) > 0  # this thread, which was one of them, computes as before
