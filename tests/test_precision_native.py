"""The native engine's products in bfloat16: the kernels of each unit, and gradients and bits of nets that use them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oracle import Oracle, make_data, make_model
from ranks import run_ranks
from small_problem import copy_of, same
from spread_native import EPOCHS, RATE, Case
from wholebatch import Loss, Optimizer, kernels
from wholebatch.feedforward.data import batch_offsets
from wholebatch.feedforward.native import NativeEngine

UNITS = ("amx", "avx512_bf16")
LOWER = ("high", "medium")
# What rounding does to an operand, at most, in parts of it: 8 bits, and 8 bits of what is left of it.
ROUNDING = {"medium": 2.0**-8, "high": 2.0**-16}


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if not kernels.native_available():
        pytest.skip("the compiled part of wholebatch is missing")
    name: str = request.param
    monkeypatch.setenv("WHOLEBATCH_PRODUCT_UNIT", name)
    try:
        assert kernels.product_unit() == name
    except ValueError as error:
        pytest.skip(f"no {name} here: {error}")
    return name


def rounded(x: np.ndarray) -> np.ndarray:
    """To bfloat16 and back."""
    return torch.from_numpy(x).bfloat16().float().numpy()


def parts_of(x: np.ndarray, precision: str) -> list[np.ndarray]:
    """The numbers that stand for x, in float64: their sum does."""
    high = rounded(x)
    rest = np.where(np.isfinite(high), x - np.where(np.isfinite(high), high, 0), 0).astype(np.float32)
    return [part.astype(np.float64) for part in ([high] if precision == "medium" else [high, rounded(rest)])]


def product(precision: str, a: np.ndarray, b: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """``start + a b`` of a unit, made in two ways that must give the same bits."""
    found = [np.full((len(a), b.shape[1]), 7.5, np.float32) for _ in range(2)]
    multiply = kernels.native_module().rounded_product
    assert multiply(precision, False, a, b, start, found[0])
    assert multiply(precision, True, np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), start, found[1])
    assert np.array_equal(found[0].view(np.int32), found[1].view(np.int32)) or np.isnan(found[0]).any()
    return found[0]


def expected(precision: str, a: np.ndarray, b: np.ndarray, start: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """In float64, of the rounded operands; and the sum of the sizes of all terms."""
    of_a, of_b = parts_of(a, precision), parts_of(b, precision)
    pairs = [(x, y) for i, x in enumerate(of_a) for j, y in enumerate(of_b) if i + j < 2]
    return start + sum(x @ y for x, y in pairs), np.abs(start) + sum(np.abs(x) @ np.abs(y) for x, y in pairs)


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_product_is_that_of_the_rounded_operands(unit: str, precision: str, offset: float):
    """Products of two 8-bit numbers are exact in float32, so what is left are the roundings of the sum, 2^-24 of the
    terms' sizes for each term added: up to three for each inner index, and the start."""
    random = np.random.default_rng(0)
    for rows in (1, 7, 16, 17, 33, 128):
        for inner in (1, 2, 31, 33, 600):
            for columns in (1, 16, 17, 40):
                a = (random.normal(size=(rows, inner)) + offset).astype(np.float32)
                b, start = (random.normal(size=s).astype(np.float32) for s in ((inner, columns), (columns,)))
                for first in (None, start):
                    exact, size = expected(precision, a, b, 0.0 if first is None else first.astype(np.float64))
                    error = np.abs(product(precision, a, b, first) - exact)
                    assert (error <= (3 * inner + 1) * 2.0**-24 * size).all(), (rows, inner, columns)


@pytest.mark.parametrize("precision", LOWER)
def test_the_precision_is_what_its_name_says(unit: str, precision: str):
    random = np.random.default_rng(1)
    a, b = (random.normal(size=s).astype(np.float32) for s in ((65, 300), (300, 33)))
    error = np.abs(product(precision, a, b) - a.astype(np.float64) @ b)
    size = np.abs(a).astype(np.float64) @ np.abs(b)
    left_out = 3 if precision == "high" else 2  # of both operands, and lo * lo
    assert (error <= (left_out * 1.01 * ROUNDING[precision] + 901 * 2.0**-24) * size).all()
    assert error.max() > 2.0**-6 * ROUNDING[precision] * size.max()  # and no better than it says


def test_rounding_is_torchs_to_the_last_bit(unit: str):
    """A single product by 1 gives the operand: ties, infinities, nan and numbers near both ends of the range."""
    random = np.random.default_rng(2)
    bits = random.integers(0, 2**32, 4096, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(0x3F80, 0x3F90, dtype=np.uint32) << 16) | 0x8000
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1.2e-38], np.float32).view(np.uint32)
    x = np.concatenate([bits, ties, ties + 1, ties - 1, special]).view(np.float32)
    small = np.abs(x) < 2.0**-125  # subnormal numbers may become 0, and what rounds to or from one
    x = np.where(small & ~np.isnan(x), np.float32(0), x)
    found = product("medium", x[:, None], np.ones((1, 1), np.float32))[:, 0]
    assert np.array_equal(found, rounded(x), equal_nan=True)
    with np.errstate(invalid="ignore"):
        in_parts = sum(parts_of(x, "high")).astype(np.float32)
    in_range = np.isfinite(rounded(x)) & ((np.abs(x) > 2.0**-100) | (x == 0))  # the rest is no subnormal number
    found = product("high", x[:, None], np.ones((1, 1), np.float32))[:, 0]
    assert np.array_equal(found[in_range], in_parts[in_range])
    assert not np.isfinite(found[~np.isfinite(rounded(x))]).any()


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_row_and_column(unit: str, precision: str, bad: float):
    random = np.random.default_rng(3)
    a, b = (random.normal(size=s).astype(np.float32) for s in ((37, 70), (70, 35)))
    clean = product(precision, a, b)
    a[20, 33] = bad
    found = product(precision, a, b)
    assert not np.isfinite(found[20]).any()
    if precision == "medium" and np.isinf(bad):
        assert np.array_equal(found[20], bad * np.sign(b[33]))
    assert np.array_equal(np.delete(found, 20, 0), np.delete(clean, 20, 0))


def gradients_of(engine: Any, data: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = engine.gradients(data)[1]
    return found


PLACES = [("batch", "before"), ("batch", "after"), ("layer", "before"), ("rms", "before"), ("none", "before")]
# Tails of every kind, gradients that are kept for a sum over blocks, and some that are summed in groups of blocks.
NETS = [
    ((7, 5), 33),
    ((17, 1, 33, 3), 65),
    ((33, 65, 40, 10), 300),
    ((257, 400, 333, 10), 260),
    ((9, 70, 400, 400, 3), 1100),
]


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("place", PLACES)
def test_gradients_are_near_float64_by_as_much_as_was_rounded(unit: str, precision: str, place: tuple[str, str]):
    """A step has three products a layer, whose two operands are rounded by ROUNDING at most ("high" leaves as much
    out). What is rounded is a sum over rows and columns, where roundings cancel as terms do; so each product moves the
    norm of what comes out by no more than that, and tanh and a norm pass on at most what they get. eps keeps a norm
    from magnifying what is nearly constant."""
    for sizes, rows in NETS:
        if unit != "amx" and rows > 1000:
            continue  # the same way through another unit
        model = make_model(sizes, *place, "tanh", dtype=torch.float32, eps=0.1)
        loss = Loss("cross_entropy")
        data = make_data(model, loss, rows)
        exact = Oracle(model, loss).gradients(data)[1]
        given = gradients_of(NativeEngine(model, loss, Optimizer(), matmul_precision=precision), data)
        bound = 3 * len(model.parts()) * (3 if precision == "high" else 2) * ROUNDING[precision]
        largest = max(float(g.norm()) for g in exact.values())
        for name, gradient in exact.items():
            error = float((given[name] - gradient).norm())
            assert error <= bound * (float(gradient.norm()) + 0.01 * largest), (sizes, rows, name)
        last = f"{name.rpartition('.')[0]}.weight"
        assert float((given[last] - exact[last]).norm()) > 2.0**-6 * ROUNDING[precision] * float(exact[last].norm())


def test_inputs_far_from_zero_are_moved_there_before_they_are_rounded(unit: str):
    """At a mean of 1e4 bfloat16 numbers lie 64 apart: nothing of a spread of 1 would be left."""
    loss = Loss("cross_entropy")
    model = make_model((17, 17, 7, 3), "batch", "before", "tanh", dtype=torch.float32, eps=0.1)
    data = make_data(model, loss, 65, mean=1e4)
    exact = Oracle(model, loss).gradients(data)[1]
    given = gradients_of(NativeEngine(model, loss, Optimizer(), matmul_precision="high"), data)
    for name, gradient in exact.items():
        floor = 0.01 * max(float(g.norm()) for g in exact.values())
        assert float((given[name] - gradient).norm()) <= 27 * ROUNDING["high"] * (float(gradient.norm()) + floor), name


def trained(optimizer: Optimizer, loss: Loss, place: tuple[str, str], **how: Any) -> list[torch.Tensor]:
    """A short epoch and a tall one: gradients that are kept and, in the tall one, some that are summed in groups."""
    model = make_model((37, 70, 400, 333, 3), *place, "relu", dtype=torch.float32, dropout=0.1)
    data = make_data(model, loss, 1300)
    engine = NativeEngine(model, loss, optimizer, **how)
    for batch in (200, 1200):
        offsets = batch_offsets(len(data), batch, model.architecture)
        order = np.random.default_rng(0).permutation(len(data))
        engine.train_epoch(data, order, offsets, np.full(len(offsets) - 1, 0.05))
    return list(model.state_dict().values())


WAYS = [
    (Optimizer("sgd", momentum=0.9), Loss("cross_entropy"), ("batch", "before")),
    (Optimizer("adam"), Loss("cross_entropy", alpha=0.1), ("layer", "before")),
    (Optimizer("adamw", max_grad_norm=0.5), Loss("cross_entropy"), ("none", "before")),
]


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_for_any_number_of_threads_and_either_split(precision: str, way: Any):
    if kernels.product_unit(precision) is None:
        pytest.skip("the processor has no unit for products of bfloat16 numbers that pays")
    alone = trained(*way, n_threads=1, matmul_precision=precision)
    for threads, split in ((2, "example"), (3, "example"), (4, "example"), (1, "neuron"), (2, "neuron"), (3, "neuron")):
        other = trained(*way, n_threads=threads, split=split, matmul_precision=precision)
        assert all(map(torch.equal, alone, other)), (threads, split)
    assert not torch.equal(alone[0], trained(*way, n_threads=1)[0])


CASES = [  # with gradients that are kept for a sum over blocks; and of one tall mini-batch, summed in groups
    Case(sizes=(37, 70, 400, 333, 3), rows=600, batch_size=300),
    Case(norm="rms", rows=8 * 1100, batch_size=8 * 1100, sizes=(9, 33, 17, 3)),
]


def train_spread(rank: int, group: str | None) -> list[dict[str, torch.Tensor]]:
    found = []
    for index, (case, precision) in enumerate((case, precision) for case in CASES for precision in LOWER):
        split = ("example", "neuron")[(rank + index) % 2]
        engine, data, deal = case.begin(group, n_threads=1 + rank, split=split, matmul_precision=precision)
        for epoch in range(EPOCHS):
            order, rates = deal.order(0, epoch), np.full(deal.steps, RATE)
            engine.train_epoch(data, order, deal.offsets, rates, counts=deal.counts)
        found.append(copy_of(engine.model))
    return found


def test_four_shards_have_the_same_bits_over_one_process_and_two():
    if kernels.product_unit("high") is None:
        pytest.skip("the processor has no unit for products of bfloat16 numbers that pays")
    alone = train_spread(0, None)
    for outcome in run_ranks(train_spread, 2, "world"):
        for given, nets in zip(outcome.value, alone, strict=True):
            assert same(given, nets)
    for high, medium in zip(alone[::2], alone[1::2], strict=True):
        assert not same(high, medium)


@pytest.mark.parametrize("way", WAYS)
def test_the_highest_is_what_it_was_without_the_switch(way: Any):
    if not kernels.native_available():
        pytest.skip("the compiled part of wholebatch is missing")
    assert all(map(torch.equal, trained(*way), trained(*way, matmul_precision="highest")))


def test_an_unknown_unit_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch):
    if not kernels.native_available():
        pytest.skip("the compiled part of wholebatch is missing")
    monkeypatch.setenv("WHOLEBATCH_PRODUCT_UNIT", "vnni")
    with pytest.raises(ValueError, match="is 'vnni'; known are amx, avx512_bf16 and none, and with"):
        kernels.product_unit()
    monkeypatch.setenv("WHOLEBATCH_PRODUCT_UNIT", "none")
    assert kernels.product_unit() is None
    monkeypatch.setenv("WHOLEBATCH_PRODUCT_UNIT", "")
    monkeypatch.setenv("WHOLEBATCH_INSTRUCTION_SET", "portable")
    assert kernels.product_unit() is None  # its panels are not as wide as a unit's tiles


def test_the_engine_itself_refuses_what_it_cannot_do():
    if not kernels.native_available():
        pytest.skip("the compiled part of wholebatch is missing")
    for dtype, precision, words in ((torch.float32, "low", "choose one of"), (torch.float64, "high", "float32 nets")):
        model = make_model((3, 4, 2), "batch", "before", "tanh", dtype=dtype)
        engine = NativeEngine(model, Loss("mse"), Optimizer(), matmul_precision=precision)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=words):
            engine.gradients(make_data(model, Loss("mse"), 8))
