"""Batch norm on one worker's part: the compiled kernel where it serves, the torch reference everywhere."""

import functools

from torch import Tensor

from wholebatch.kernels.batch_norm.kernel import Affine, Kernel, accumulation_dtype
from wholebatch.kernels.batch_norm.masking import counted
from wholebatch.kernels.batch_norm.native import Native, serves
from wholebatch.kernels.batch_norm.reference import Reference
from wholebatch.kernels.batch_norm.statistics import find_rstd, move_running
from wholebatch.kernels.batch_norm.steps import Steps

__all__ = [
    "Affine",
    "Kernel",
    "Native",
    "Reference",
    "Steps",
    "accumulation_dtype",
    "choose_kernel",
    "counted",
    "find_rstd",
    "move_running",
]

REFERENCE = Reference()


@functools.cache
def _native() -> Steps:
    return Steps()


def choose_kernel(z: Tensor, mask: Tensor | None) -> Kernel:
    """The fastest kernel that serves this input.

    ``WHOLEBATCH_KERNELS=reference`` in the environment keeps to torch's own operations.

    Raises:
        ValueError: the variable names no kernel.
    """
    return _native() if serves(z, mask) else REFERENCE
