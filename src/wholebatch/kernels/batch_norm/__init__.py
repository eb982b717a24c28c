"""Batch norm on one worker's part: compiled kernels where they serve (C++ on the CPU, Triton on a GPU), the torch
reference everywhere."""

import functools

from torch import Tensor

from wholebatch.kernels import gpu
from wholebatch.kernels.batch_norm.alone import Alone
from wholebatch.kernels.batch_norm.kernel import Affine, Kernel, accumulation_dtype
from wholebatch.kernels.batch_norm.masking import counted
from wholebatch.kernels.batch_norm.native import Native, address_of, borrows, serves
from wholebatch.kernels.batch_norm.reference import Reference
from wholebatch.kernels.batch_norm.statistics import find_rstd, move_running
from wholebatch.kernels.batch_norm.steps import Steps
from wholebatch.kernels.native import native_available
from wholebatch.kernels.wish import wished

__all__ = [
    "Affine",
    "Alone",
    "Kernel",
    "Native",
    "Reference",
    "Steps",
    "accumulation_dtype",
    "address_of",
    "choose_kernel",
    "counted",
    "find_rstd",
    "move_running",
    "steps",
]

REFERENCE = Reference()


@functools.cache
def _native() -> Steps:
    return Steps()


@functools.cache
def _triton() -> Kernel:
    from wholebatch.kernels.gpu.kernel import Triton  # imports Triton, which takes a while

    return Triton()


@functools.cache
def steps() -> Steps | None:
    """The compiled kernels where they may look at tensors themselves; None: they are not here, or not wanted, or this
    torch is too old for that."""
    return _native() if wished() in ("", "native") and native_available() and borrows() else None


def choose_kernel(z: Tensor, mask: Tensor | None) -> Kernel:
    """The fastest kernel that serves this input.

    ``WHOLEBATCH_KERNELS`` in the environment decides otherwise, see :func:`wholebatch.kernels.wish.wished`.

    Raises:
        ValueError: the variable names no kernel, or one that cannot run here.
    """
    if serves(z, mask):
        return _native()
    return _triton() if gpu.serves(z) else REFERENCE
