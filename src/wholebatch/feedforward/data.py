"""The table in memory as an engine takes it: rows, targets, weights; and how an epoch is cut into mini-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch

from wholebatch.feedforward.memory import Need
from wholebatch.feedforward.settings import Architecture, Loss

NUMPY_DTYPES: dict[torch.dtype, type[np.floating]] = {torch.float32: np.float32, torch.float64: np.float64}
CHECKED = 1 << 16  # values looked at in one go: what is made of them stays in cache


@dataclass(frozen=True)
class Data:
    """``x``: ``(N, F)`` C-contiguous, or CSR; ``y``: ``(N,)`` int64 or ``(N, out)``; ``sample_weight``: ``(N,)``.

    All numbers are in the net's dtype. Make one with :func:`prepare`, which checks and converts.
    """

    x: Any
    y: np.ndarray | None
    sample_weight: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def take(self, rows: np.ndarray) -> Data:
        """These rows, copied, in this order."""
        y = None if self.y is None else self.y[rows]
        weight = None if self.sample_weight is None else self.sample_weight[rows]
        return Data(self.x[rows], y, weight)


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor on the same memory; a copy where that is read-only (pandas, memory maps), which torch does not know."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _as_array(values: Any, kind: type[np.generic] | None = None) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, which is refused in our own words
        return np.ascontiguousarray(values, dtype=kind)


def _check_finite(name: str, values: np.ndarray) -> None:
    flat = values.reshape(-1)  # a view: values are contiguous
    parts = (flat[start : start + CHECKED] for start in range(0, flat.size, CHECKED))
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(f"{name} has a value that is not finite (nan, inf, or too large for {values.dtype})")


def _copied_bytes(x: Any, kind: type[np.floating]) -> int:
    """What :func:`prepare_inputs` will take for a copy of ``x`` in ``kind``."""
    if scipy.sparse.issparse(x):
        return 0 if x.format == "csr" and x.dtype == kind else int(x.nnz) * (np.dtype(kind).itemsize + 4)
    if isinstance(x, np.ndarray) and x.dtype == kind and x.flags.c_contiguous:
        return 0
    if isinstance(x, torch.Tensor) and NUMPY_DTYPES.get(x.dtype) is kind and x.is_contiguous() and x.is_cpu:
        return 0
    return math.prod(getattr(x, "shape", ())) * np.dtype(kind).itemsize


def prepare_inputs(x: Any, features: int, dtype: torch.dtype, *, checked: bool = False) -> Any:
    """``x`` as a C-contiguous ``(N, features)`` array or a canonical CSR matrix, in ``dtype``; no copy where it fits.

    Args:
        checked: it is known to be finite, in a dtype that is no wider.

    Raises:
        ValueError: another number of columns, a value that is not finite (or not in ``dtype``), a copy for which
            there is no memory.
        TypeError: a net whose dtype no engine knows.
    """
    if dtype not in NUMPY_DTYPES:
        raise TypeError(f"the net's dtype is {dtype}; fit works in torch.float32 and torch.float64: use net.float()")
    kind = NUMPY_DTYPES[dtype]
    Need(table=_copied_bytes(x, kind), dtype=dtype).check(f"a copy of x as {np.dtype(kind)}")
    if scipy.sparse.issparse(x):
        with np.errstate(over="ignore"):
            x = x.tocsr().astype(kind, copy=False)
        if not x.has_canonical_format:  # an entry that is stored twice means the sum of both
            x = x.copy()
            x.sum_duplicates()
        values = x.data
    else:
        values = x = _as_array(x, kind)
    if x.ndim != 2 or x.shape[1] != features:
        raise ValueError(f"x has shape {tuple(x.shape)}; this net takes (N, {features})")
    if not checked:
        _check_finite("x", values)
    return x


def prepare(
    x: Any,
    y: Any,
    sample_weight: Any,
    architecture: Architecture,
    loss: Loss,
    dtype: torch.dtype,
    *,
    whole: bool = True,
) -> Data:
    """Check and convert inputs, targets and weights for this net and loss.

    Args:
        whole: these are all rows. Of a part it may be that it has none, or weights that are all zero.

    Raises:
        ValueError: lengths or columns that disagree, no rows, a class outside ``0..out_features-1``, a value that is
            not finite, a negative weight, weights that are all zero.
    """
    x = prepare_inputs(x, architecture.in_features, dtype)
    rows, outputs = x.shape[0], architecture.out_features
    if rows == 0 and whole:
        raise ValueError("x has no rows")
    y = _as_array(y)
    if y.shape[:1] != (rows,):
        raise ValueError(f"y has shape {y.shape}, x has {rows} rows; both need the same number of rows")
    if loss.takes_classes:
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
            raise ValueError(f"cross_entropy takes class indices of shape (N,), y is {y.dtype} of shape {y.shape}")
        y = np.ascontiguousarray(y, dtype=np.int64)
        low, high = (int(y.min()), int(y.max())) if rows else (0, 0)
        if low < 0 or high >= outputs:
            raise ValueError(f"y has classes {low}..{high}, the net has {outputs} outputs (0..{outputs - 1})")
    else:
        y = _as_array(y.reshape(rows, -1) if rows else y.reshape(0, outputs), NUMPY_DTYPES[dtype])
        if y.shape[1] != outputs:
            raise ValueError(f"y has {y.shape[1]} columns, the net has {outputs} outputs")
        _check_finite("y", y)
        if loss.kind == "bce" and rows and (y.min() < 0 or y.max() > 1):
            raise ValueError(f"bce takes targets in 0..1, y lies in {y.min()}..{y.max()}")
    if loss.class_weights is not None and len(loss.class_weights) != outputs:
        raise ValueError(f"{len(loss.class_weights)} class weights were given, the net has {outputs} outputs")
    if sample_weight is not None:
        sample_weight = _as_array(sample_weight, NUMPY_DTYPES[dtype])
        if sample_weight.shape != (rows,):
            raise ValueError(f"sample_weight has shape {sample_weight.shape}, x has {rows} rows")
        _check_finite("sample_weight", sample_weight)
        if (sample_weight < 0).any() or (whole and not sample_weight.any()):
            raise ValueError("sample weights must not be negative, nor all zero")
    return Data(x, y, sample_weight)


def batch_offsets(rows: int, batch_size: int, architecture: Architecture) -> np.ndarray:
    """Where each mini-batch of an epoch begins, and the end of the last: ``(steps + 1,)`` int64.

    The last mini-batch holds the remainder. A remainder of a *single* example has no variance of its own, and torch's
    batch norm refuses it; here, under batch norm, it joins the mini-batch before it, so that no row is lost.

    Raises:
        ValueError: batch norm over fewer than two rows, or a batch size below 1 (below 2 under batch norm).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if architecture.waits:
        if rows < 2:
            raise ValueError(f"batch norm needs at least 2 examples to have a variance; there is {rows}")
        if batch_size < 2:
            raise ValueError("batch_size is 1; batch norm needs at least 2 examples in a mini-batch")
    offsets = [*range(0, rows, batch_size), rows]
    if architecture.waits and len(offsets) > 2 and offsets[-1] - offsets[-2] == 1:
        del offsets[-2]
    return np.asarray(offsets, dtype=np.int64)


def shuffled(rows: int, seed: int, epoch: int, shard: int = 0) -> np.ndarray:
    """The order of a shard's rows in an epoch, all rows where there is one shard: a function of these numbers alone.

    So a resumed run needs no generator state, and it does not matter which rank owns the shard.
    """
    entropy = [seed, epoch, shard] if shard else [seed, epoch]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).permutation(rows)


def split_rows(
    rows: int, fraction: float, seed: int, stratify: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) row indices, ascending, by scikit-learn's ``train_test_split``: ``ceil(fraction * rows)`` held.

    With ``stratify``, ``(rows,)`` class indices, both parts have the classes in the same shares. A class with a
    single row cannot be in both: it is kept, to be learned from. Where either part is smaller than the number of
    classes, shares cannot be had, and rows are drawn without regard to class.

    Raises:
        ValueError: a fraction that is not between 0 and 1, or one that leaves a part without rows.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise ValueError(f"the fraction of rows to hold out is {fraction!r}; it must be above 0 and below 1")
    held = math.ceil(fraction * rows)
    if held >= rows:
        raise ValueError(
            f"holding out {fraction} of {rows} rows leaves none to learn from; hold out less, or bring more rows"
        )
    chosen, classes = np.arange(rows), None
    if stratify is not None:
        _, of, counts = np.unique(stratify, return_inverse=True, return_counts=True)
        repeated = counts[of] > 1
        groups, several = int((counts > 1).sum()), int(repeated.sum())
        if groups <= held and groups <= several - held:
            chosen, classes = chosen[repeated], of[repeated]
    _, out = train_test_split(chosen, test_size=held, random_state=seed, stratify=classes)
    kept = np.ones(rows, dtype=bool)
    kept[out] = False
    return np.flatnonzero(kept), np.sort(out)
