"""What reaches an engine: checked, converted, cut into mini-batches and shuffled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from wholebatch import Architecture, Loss
from wholebatch.feedforward.data import as_tensor, batch_offsets, prepare, prepare_inputs, shuffled

NET = Architecture(3, (4,), 2)
X = np.arange(12.0).reshape(4, 3)
Y = np.array([0, 1, 1, 0])


def ready(
    x: Any = X, y: Any = Y, weight: Any = None, loss: Loss | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    return prepare(x, y, weight, NET, loss or Loss("cross_entropy"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "x",
    [
        X,
        X.astype(np.float32),
        X.astype(np.int16),
        np.asfortranarray(X),
        X.tolist(),
        torch.from_numpy(X),
        torch.from_numpy(X).requires_grad_(),
        pd.DataFrame(X),
        pl.DataFrame(X),
    ],
    ids=["float64", "float32", "int16", "fortran", "list", "tensor", "parameter", "pandas", "polars"],
)
def test_inputs_of_any_kind(x: Any, dtype: torch.dtype):
    data = ready(x, dtype=dtype)
    assert data.x.flags.c_contiguous
    assert data.x.dtype == {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    np.testing.assert_array_equal(data.x, X)
    assert len(data) == 4


def test_no_copy_where_it_fits():
    x = X.astype(np.float32)
    assert prepare_inputs(x, 3, torch.float32) is x
    sparse = scipy.sparse.csr_array(x)
    assert np.shares_memory(prepare_inputs(sparse, 3, torch.float32).data, sparse.data)


@pytest.mark.parametrize(
    "make", [scipy.sparse.csr_matrix, scipy.sparse.coo_array, scipy.sparse.csc_array, scipy.sparse.lil_array]
)
def test_sparse_inputs_become_csr(make: Any):
    data = ready(make(X))
    assert data.x.format == "csr"
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x.toarray(), X)


def test_an_entry_stored_twice_is_the_sum_and_the_callers_matrix_stays():
    twice = scipy.sparse.csr_array((np.array([1.0, 2.0, 5.0]), np.array([2, 2, 0]), np.array([0, 2, 3])), shape=(2, 3))
    given = prepare_inputs(twice, 3, torch.float64)
    np.testing.assert_array_equal(given.toarray(), [[0, 0, 3], [5, 0, 0]])
    assert given.nnz == 2
    assert twice.data.tolist() == [1, 2, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[:, :2]}, r"x has shape \(4, 2\); this net takes \(N, 3\)"),
        ({"x": X[:, 0]}, r"x has shape \(4,\); this net takes \(N, 3\)"),
        ({"x": np.where(X == 5, np.nan, X)}, "x has a value that is not finite"),
        ({"x": np.where(X == 5, np.inf, X)}, "x has a value that is not finite"),
        ({"x": X * 1e300}, r"x has a value that is not finite \(nan, inf, or too large for float32\)"),
        ({"x": scipy.sparse.csr_array(X * 1e300)}, "too large for float32"),
        ({"x": scipy.sparse.csr_array(np.where(X == 5, np.nan, X))}, "x has a value that is not finite"),
        ({"x": [["a", "b", "c"]] * 4}, "could not convert string to float"),
        ({"x": X[:0], "y": Y[:0]}, "x has no rows"),
        ({"y": Y[:3]}, r"y has shape \(3,\), x has 4 rows"),
        ({"y": Y.astype(float)}, r"takes class indices of shape \(N,\), y is float64 of shape \(4,\)"),
        ({"y": Y[:, None]}, r"y is int64 of shape \(4, 1\)"),
        ({"y": ["a", "b", "a", "b"]}, "takes class indices"),
        ({"y": [0, 1, 2, 0]}, r"y has classes 0\.\.2, the net has 2 outputs \(0\.\.1\)"),
        ({"y": [0, -1, 1, 0]}, r"y has classes -1\.\.1"),
        ({"y": np.ones((4, 3)), "loss": Loss("mse")}, "y has 3 columns, the net has 2 outputs"),
        ({"y": Y, "loss": Loss("mse")}, "y has 1 columns, the net has 2 outputs"),
        ({"y": np.full((4, 2), np.nan), "loss": Loss("huber")}, "y has a value that is not finite"),
        ({"y": np.full((4, 2), 1e39), "loss": Loss("mse")}, "y has a value .* too large for float32"),
        ({"y": np.full((4, 2), 1.5), "loss": Loss("bce")}, r"bce takes targets in 0\.\.1, y lies in 1\.5\.\.1\.5"),
        ({"loss": Loss("cross_entropy", class_weights=(1.0, 1.0, 1.0))}, "3 class weights were given, the net has 2"),
        ({"weight": [1.0, 1.0]}, r"sample_weight has shape \(2,\), x has 4 rows"),
        ({"weight": [1.0, -1.0, 1.0, 1.0]}, "must not be negative"),
        ({"weight": np.zeros(4)}, "nor all zero"),
        ({"weight": [1.0, np.nan, 1.0, 1.0]}, "sample_weight has a value that is not finite"),
    ],
)
def test_what_does_not_fit_is_told(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ready(**arguments)


def test_a_net_of_another_dtype():
    with pytest.raises(TypeError, match=r"dtype is torch\.float16; fit works in torch\.float32 and torch\.float64"):
        ready(dtype=torch.float16)


def test_targets_and_weights_take_the_nets_dtype():
    data = ready(y=torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]]), loss=Loss("bce"), weight=torch.ones(4).double())
    assert data.y.dtype == data.sample_weight.dtype == np.float32
    assert ready(y=Y.astype(np.uint8)).y.dtype == np.int64
    one = prepare(X, Y, None, Architecture(3, (), 1), Loss("mse"), torch.float64)
    assert one.y.shape == (4, 1)


@pytest.mark.parametrize("sparse", [False, True])
def test_take_copies_rows_in_order(sparse: bool):
    data = ready(scipy.sparse.csr_array(X) if sparse else X, weight=[1.0, 2.0, 3.0, 4.0])
    taken = data.take(np.array([3, 0, 3]))
    rows = taken.x.toarray() if sparse else taken.x
    np.testing.assert_array_equal(rows, X[[3, 0, 3]])
    assert taken.y.tolist() == [0, 0, 0]
    assert taken.sample_weight.tolist() == [4.0, 1.0, 4.0]
    (taken.x.data if sparse else taken.x)[:] = -1
    np.testing.assert_array_equal(data.x.toarray() if sparse else data.x, X)


def test_as_tensor_shares_what_may_be_written_and_copies_what_may_not():
    values = np.arange(3.0)
    as_tensor(values)[0] = 7.0
    assert values[0] == 7.0
    values.flags.writeable = False
    as_tensor(values)[0] = 9.0  # warnings are errors: torch's about read-only memory too
    assert values[0] == 7.0


@given(
    whole=st.integers(0, 8),
    batch_size=st.integers(1, 50),
    more=st.sampled_from([0, 1, 1, 2, 17]),
    norm=st.sampled_from(["batch", "none"]),
)
def test_mini_batches_cover_every_row_once(whole: int, batch_size: int, more: int, norm: Any):
    architecture, rows = Architecture(3, (4,), 2, norm=norm), max(1, whole * batch_size + more)
    if norm == "batch" and (rows < 2 or batch_size < 2):
        with pytest.raises(ValueError, match="batch norm needs at least 2 examples"):
            batch_offsets(rows, batch_size, architecture)
        return
    offsets = batch_offsets(rows, batch_size, architecture)
    sizes = np.diff(offsets)
    assert offsets.dtype == np.int64
    assert (offsets[0], offsets[-1]) == (0, rows)
    assert (sizes[:-1] == batch_size).all()
    remainder = rows % batch_size or batch_size
    if norm == "batch" and remainder == 1 and rows > 1:
        assert sizes[-1] == batch_size + 1  # joined to the one before it
    else:
        assert sizes[-1] == remainder
    assert len(sizes) == math.ceil(rows / batch_size) - (norm == "batch" and remainder == 1)


def test_a_net_without_hidden_layers_does_not_wait():
    assert batch_offsets(1, 1, Architecture(3, (), 2)).tolist() == [0, 1]
    with pytest.raises(ValueError, match="batch_size is 0"):
        batch_offsets(5, 0, Architecture(3, (), 2))


def test_shuffling_is_a_function_of_seed_and_epoch():
    one = shuffled(50, 3, 4)
    np.testing.assert_array_equal(np.sort(one), np.arange(50))
    np.testing.assert_array_equal(shuffled(50, 3, 4), one)
    for other in (shuffled(50, 3, 5), shuffled(50, 4, 4), shuffled(50, 4, 3)):
        assert (other != one).any()


def test_shuffling_is_fair():
    """Where row 0 of 10 lands, over 2000 epochs: chi-squared with 9 degrees stays below 33.7 but once in 1e4."""
    places = [int(np.flatnonzero(shuffled(10, 1, epoch) == 0)[0]) for epoch in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7
