"""Which engine a net gets."""

from __future__ import annotations

from typing import get_args

from wholebatch import kernels
from wholebatch.feedforward.engine import Engine
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.native import NativeEngine
from wholebatch.feedforward.reference import ReferenceEngine
from wholebatch.feedforward.settings import Loss, Optimizer, Split


def make_engine(
    model: FeedForward,
    loss: Loss,
    optimizer: Optimizer,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    split: Split = "auto",
    engine: str = "auto",
) -> Engine:
    """The engine for this net: ``native`` where the compiled part is there, else ``reference``, which is said once.

    Args:
        n_threads: example-threads; None chooses by shape and cores. The result does not depend on it. (The reference
            hands it to torch, whose results may; None leaves torch's own choice.)
        split: ``example``, ``neuron`` or ``auto``: who holds what. The result does not depend on it either.
        engine: ``auto``, ``native`` or ``reference``.

    Raises:
        ValueError: an unknown engine or split, ``n_threads`` below 1, or ``native`` where it was not built.
    """
    if engine not in ("auto", "native", "reference"):
        raise ValueError(f"engine is {engine!r}; choose 'auto', 'native' or 'reference'")
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; choose one of {', '.join(map(repr, get_args(Split)))}")
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads is {n_threads}; it must be at least 1, or None to choose by shape")
    if engine == "native" or (engine == "auto" and kernels.native_available(say=True)):
        return NativeEngine(model, loss, optimizer, seed=seed, n_threads=n_threads, split=split)
    return ReferenceEngine(model, loss, optimizer, seed=seed, n_threads=n_threads)
