"""The loss and every gradient of one mini-batch, in both engines and both precisions, against float64 torch.

Tolerances. In float64 the engines and the oracle do the same sums in another order; they may differ by some hundred
roundings. In float32 a sum of K products errs by about sqrt(K) roundings of its terms' size; a gradient has passed two
such sums per layer on its way forward and two backward, and a norm's division by the standard deviation (near 1 here,
down to a third) in each: about 4 * 3 * layers * sqrt(K) roundings of the largest gradients, of which ``floor`` allows
twice. Under batch norm two rows leave a gradient of their own size times eps / var, as what is left of terms that
cancel, so nothing finer than a share of the largest gradient of all can be asked there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oracle import ACTIVATIONS, EPS, PLACES, SMOOTH, Oracle, assert_near, engine_of, loss_of, make_data, make_model
from wholebatch import FeedForward, Loss
from wholebatch.feedforward.data import Data, prepare

DTYPES = (torch.float32, torch.float64)
LOSSES = {
    "cross_entropy": Loss("cross_entropy"),
    "cross_entropy, all": Loss(
        "cross_entropy", label_smoothing=0.125, class_weights=(0.5, 2.0, 1.25), scale=2.0, alpha=0.5
    ),
    "cross_entropy, smooth": Loss("cross_entropy", label_smoothing=0.25),
    "cross_entropy, class weights": Loss("cross_entropy", class_weights=(0.0, 2.0, 1.25)),
    "mse": Loss("mse"),
    "mse, all": Loss("mse", scale=0.5, alpha=0.25),
    "huber": Loss("huber"),
    "huber, all": Loss("huber", delta=0.5, scale=3.0, alpha=0.125),
    "bce": Loss("bce"),
    "bce, all": Loss("bce", label_smoothing=0.125, class_weights=(0.5, 2.0, 1.25), scale=2.0, alpha=0.5),
}


def check(engine: str, model: FeedForward, loss: Loss, data: Data, *, seed: int = 0, per_tensor: bool = True) -> None:
    """Compare; ``per_tensor`` asks for the precision in each tensor's own size too, where nothing cancels."""
    dtype = next(model.parameters()).dtype
    expected_loss, expected = Oracle(model, loss, seed=seed).gradients(data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given_loss, given = engine_of(engine, model, loss, seed=seed).gradients(data)
    layers, terms = len(model.parts()), max(*model.architecture.sizes, len(data))
    roundings = 24 * layers * terms**0.5 * EPS[dtype]
    assert abs(given_loss - expected_loss) <= roundings * max(abs(expected_loss), 0.1)
    assert_near(given, expected, 8 * roundings if per_tensor else 0.0, floor=roundings)
    for name, tensor in model.state_dict().items():  # gradients() leaves the net as it is, running statistics included
        assert torch.equal(tensor, before[name]), name


def make(
    sizes: tuple[int, ...],
    place: tuple[str, str],
    activation: str,
    loss: Loss,
    rows: int,
    dtype: torch.dtype,
    **more: Any,
) -> tuple[FeedForward, Data]:
    """Net and data; for activations with a kink from the first seed whose sums stay clear of it."""
    margin = 0.0 if activation in SMOOTH else 2e-5  # float32 sums of some tens of terms err by 1e-6 to 5e-6
    inputs = {name: more.pop(name) for name in ("mean", "constant", "weighted") if name in more}
    for seed in range(100):
        model = make_model(sizes, *place, activation, dtype=dtype, seed=seed, **more)
        data = make_data(model, loss, rows, seed=seed, **inputs)
        if Oracle(model, loss).nearest_kink(data) > margin:
            return model, data
    raise AssertionError("no seed keeps clear of the kinks")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("place", PLACES)
def test_every_norm_place_and_activation(engine: str, place: tuple[str, str], activation: str, dtype: torch.dtype):
    losses = [loss for name, loss in LOSSES.items() if name.endswith("all")]
    loss = losses[(PLACES.index(place) + ACTIVATIONS.index(activation)) % len(losses)]
    model, data = make((6, 17, 7, 3), place, activation, loss, 65, dtype, weighted=True)
    check(engine, model, loss, data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(engine: str, name: str, weighted: bool, dtype: torch.dtype):
    model, data = make((5, 9, 3), ("batch", "before"), "tanh", LOSSES[name], 63, dtype, weighted=weighted)
    check(engine, model, LOSSES[name], data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 3, 63, 65])
@pytest.mark.parametrize("hidden", [(1,), (7,), (17, 7), (100, 1, 17)])
@pytest.mark.parametrize("place", PLACES)
def test_odd_sizes(engine: str, place: tuple[str, str], hidden: tuple[int, ...], rows: int, dtype: torch.dtype):
    model, data = make((7, *hidden, 3), place, "silu", LOSSES["cross_entropy"], rows, dtype, eps=0.01)
    check(engine, model, LOSSES["cross_entropy"], data, per_tensor=dtype == torch.float64 and rows > 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1025, 2100])
@pytest.mark.parametrize("place", PLACES)
def test_tall(engine: str, place: tuple[str, str], rows: int, dtype: torch.dtype):
    """So many rows that gradients of weights are summed in groups of blocks, but for a matrix that is too large."""
    model, data = make((9, 17, 400, 333, 3), place, "silu", LOSSES["cross_entropy"], rows, dtype, weighted=True)
    check(engine, model, LOSSES["cross_entropy"], data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [65, 261])
@pytest.mark.parametrize("place", [("batch", "before"), ("none", "before")])
def test_wide(engine: str, place: tuple[str, str], rows: int, dtype: torch.dtype):
    """So wide that the native engine packs what it multiplies, with vectors and tiles that are not full."""
    model, data = make((41, 530, 521, 3), place, "silu", LOSSES["cross_entropy"], rows, dtype, weighted=True)
    check(engine, model, LOSSES["cross_entropy"], data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["mse", "huber", "bce"])
@pytest.mark.parametrize("rows", [2, 65])
def test_one_output(engine: str, kind: Any, rows: int, dtype: torch.dtype):
    model, data = make((1, 7, 1), ("layer", "before"), "tanh", Loss(kind), rows, dtype)
    check(engine, model, Loss(kind), data, per_tensor=dtype == torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
def test_no_hidden_layer(engine: str, kind: Any, dtype: torch.dtype):
    model, data = make((17, 3), ("batch", "before"), "relu", Loss(kind, alpha=0.5), 65, dtype)
    check(engine, model, Loss(kind, alpha=0.5), data)


@pytest.mark.parametrize("place", [("batch", "before"), ("batch", "after"), ("none", "before")])
def test_one_row_more_than_a_register(engine: str, place: tuple[str, str]):
    """Widths around the widths of vectors and tiles: 16 and 32 lanes, with the remainders 1 and -1."""
    for width in (15, 16, 31, 32, 33, 48, 49):
        for rows in (16, 127, 128, 129):
            model, data = make((width, width, width, 2), place, "tanh", Loss("cross_entropy"), rows, torch.float32)
            check(engine, model, Loss("cross_entropy"), data, per_tensor=False)


@pytest.mark.parametrize("place", PLACES)
def test_inputs_with_mean_1e4_in_float64(engine: str, place: tuple[str, str]):
    """The oracle's own roundings are allowed for: z = W x has the size 1e4, so dZ sums to zero only to 1e4 * 1e-16
    of its size, and its product with X multiplies that by 1e4 again: some times 1e8 * 1e-16 = 1e-8.

    Without a norm before it, a bounded activation would be constant at such sums, and leave nothing to compare. With
    the identity a bias under batch norm has no gradient but what rounding leaves of 0: the floor is for that.
    """
    activation = "tanh" if place[1] == "before" and place[0] != "none" else "identity"
    model, data = make((17, 17, 7, 3), place, activation, LOSSES["cross_entropy"], 65, torch.float64, mean=1e4)
    expected_loss, expected = Oracle(model, LOSSES["cross_entropy"]).gradients(data)
    given_loss, given = engine_of(engine, model, LOSSES["cross_entropy"]).gradients(data)
    assert abs(given_loss - expected_loss) <= 1e-9 * expected_loss
    assert_near(given, expected, tolerance=1e-7, floor=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu"])
def test_inputs_with_mean_1e4_in_float32(engine: str, activation: str):
    """Under batch norm only the spread of 1 on top of the mean matters, so the precision is that of ordinary inputs.

    Torch's own float32 gradient is off by twice its size here: sums of the size 1e4 err by 1e-3 of the spread, dZ no
    longer sums to zero, and its product with X multiplies what is left by 1e4.
    """
    model, data = make((17, 17, 7, 3), ("batch", "before"), activation, LOSSES["mse"], 65, torch.float32, mean=1e4)
    check(engine, model, LOSSES["mse"], data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
def test_a_constant_column(engine: str, place: tuple[str, str], dtype: torch.dtype):
    """Under batch norm a constant column cannot matter: its weights' gradient is what rounding leaves of 0."""
    model, data = make((5, 7, 4, 3), place, "tanh", LOSSES["cross_entropy"], 65, dtype, constant=True)
    check(engine, model, LOSSES["cross_entropy"], data)
    _, given = engine_of(engine, model, LOSSES["cross_entropy"]).gradients(data)
    if place == ("batch", "before"):
        largest = max(float(tensor.abs().max()) for tensor in given.values())
        assert float(given["layers.0.weight"][:, 0].abs().max()) <= 24 * 3 * 65**0.5 * EPS[dtype] * largest


def test_a_table_of_constants(engine: str):
    """No column varies: the variance of every neuron is 0, and only eps stands under the root."""
    model = make_model((3, 4, 2), "batch", "before", "tanh", dtype=torch.float64, eps=1.0)
    loss = Loss("cross_entropy")
    data = prepare(np.full((8, 3), 2.5), np.arange(8) % 2, None, model.architecture, loss, torch.float64)
    check(engine, model, loss, data, per_tensor=False)


@pytest.mark.parametrize("norm_eps", [1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("norm", ["batch", "layer", "rms"])
def test_eps(engine: str, norm: str, norm_eps: float):
    model, data = make((5, 9, 3), (norm, "before"), "gelu", Loss("mse"), 63, torch.float64, eps=norm_eps)
    check(engine, model, Loss("mse"), data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
def test_sparse_inputs_are_dense_ones(engine: str, place: tuple[str, str], dtype: torch.dtype):
    loss = Loss("cross_entropy")
    model = make_model((33, 17, 3), *place, "tanh", dtype=dtype)
    rng = np.random.default_rng(0)
    x = scipy.sparse.random_array((65, 33), density=0.1, rng=rng, format="csr")
    assert (np.diff(x.indptr) == 0).any()  # a row without entries among them
    y = rng.integers(0, 3, 65)
    sparse = prepare(x, y, None, model.architecture, loss, dtype)
    assert scipy.sparse.issparse(sparse.x)
    check(engine, model, loss, sparse)
    wide = sparse.x.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    one = engine_of(engine, model, loss).gradients(sparse)
    other = engine_of(engine, model, loss).gradients(Data(wide, sparse.y))
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
def test_dropout_with_the_stated_masks(engine: str, place: tuple[str, str], dtype: torch.dtype):
    loss = Loss("cross_entropy")
    model, data = make((5, 17, 9, 3), place, "tanh", loss, 65, dtype, dropout=0.4)
    check(engine, model, loss, data, seed=2**40 + 12345)  # a seed of more than 32 bits
    _, one = engine_of(engine, model, loss, seed=1).gradients(data)
    _, other = engine_of(engine, model, loss, seed=2).gradients(data)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "huber", "bce"])
def test_a_sample_weight_of_2_is_the_row_twice(engine: str, kind: Any):
    """Without a norm over the batch; whole weights, so that no rounding separates the two."""
    loss = Loss(kind, alpha=0.25)
    model = make_model((5, 7, 3), "none", "before", "tanh", dtype=torch.float64)
    data = make_data(model, loss, 12)
    weight = np.arange(12.0) % 4
    weighted = engine_of(engine, model, loss).gradients(Data(data.x, data.y, weight))
    repeated = engine_of(engine, model, loss).gradients(data.take(np.repeat(np.arange(12), weight.astype(int))))
    assert weighted[0] == pytest.approx(repeated[0], rel=1e-13)
    assert_near(weighted[1], repeated[1], tolerance=1e-12)


@pytest.mark.parametrize("loss", [Loss("cross_entropy", label_smoothing=0.1, alpha=1.0), Loss("mse", alpha=1.0)])
def test_a_mini_batch_of_weightless_rows_counts_nothing(engine: str, loss: Loss):
    model = make_model((5, 7, 3), "batch", "before", "tanh", dtype=torch.float64)
    data = make_data(model, loss, 12)
    value, gradients = engine_of(engine, model, loss).gradients(Data(data.x, data.y, np.zeros(12)))
    assert value == 0.0
    assert all(not tensor.any() for tensor in gradients.values())


def test_the_statistics_move_only_on_request(engine: str):
    loss = Loss("mse")
    model = make_model((5, 7, 3), "batch", "before", "tanh", dtype=torch.float64)
    data = make_data(model, loss, 12)
    oracle = Oracle(model, loss)
    oracle.gradients(data)
    runner = engine_of(engine, model, loss)
    runner.gradients(data)
    assert model.state_dict()["layers.1.num_batches_tracked"].item() == 0
    runner.gradients(data, update_running_statistics=True)
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=1e-13)
    assert model.state_dict()["layers.1.num_batches_tracked"].item() == 1
    assert runner.step == 0


@given(data=st.data())
def test_any_architecture(engine: str, data: st.DataObject):
    """Random nets of every kind in float64: no combination of settings is special."""
    draw = data.draw
    sizes = (draw(st.integers(1, 20)), *draw(st.lists(st.integers(1, 40), max_size=4)), draw(st.integers(1, 6)))
    place = draw(st.sampled_from(PLACES))
    dropout = draw(st.sampled_from([0.0, 0.25, 0.9]))
    kind = draw(st.sampled_from(["cross_entropy", "mse", "huber", "bce"]))
    weights = draw(st.sampled_from([None, tuple(0.5 + i for i in range(sizes[-1]))]))
    loss = Loss(kind, class_weights=weights, alpha=draw(st.sampled_from([0.0, 0.5])))
    seed = draw(st.integers(0, 2**63 - 1))
    activation = draw(st.sampled_from(ACTIVATIONS))
    model = make_model(sizes, *place, activation, dtype=torch.float64, seed=seed % 1000, dropout=dropout, eps=0.01)
    rows = draw(st.integers(2, 150))
    table = make_data(model, loss, rows, seed=seed % 997, weighted=draw(st.booleans()))
    check(engine, model, loss, table, seed=seed, per_tensor=False)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_oracle_losses_are_torchs(smoothing: float):
    """The oracle's formulas against torch's modules, where torch has the case: no sample weights."""
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(9, 3, generator=generator, dtype=torch.float64) * 3
    classes = torch.arange(9) % 3
    values = torch.randn(9, 3, generator=generator, dtype=torch.float64) * 3
    weights = (0.5, 2.0, 1.25)
    tensor = torch.tensor(weights, dtype=torch.float64)
    cross_entropy = Loss("cross_entropy", label_smoothing=smoothing, class_weights=weights)
    expected = nn.CrossEntropyLoss(tensor, label_smoothing=smoothing)(out, classes)
    torch.testing.assert_close(loss_of(cross_entropy, out, classes, None), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(loss_of(Loss("mse"), out, values, None), nn.MSELoss()(out, values), rtol=1e-14, atol=0)
    huber = nn.HuberLoss(delta=0.7)(out, values)
    torch.testing.assert_close(loss_of(Loss("huber", delta=0.7), out, values, None), huber, rtol=1e-14, atol=0)
    labels = (values > 0).double()
    bce = nn.BCEWithLogitsLoss(tensor)(out, labels * (1 - smoothing) + smoothing / 2)
    given = loss_of(Loss("bce", label_smoothing=smoothing, class_weights=weights), out, labels, None)
    torch.testing.assert_close(given, bce, rtol=1e-14, atol=0)
