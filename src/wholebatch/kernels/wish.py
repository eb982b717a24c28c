"""Which kernels a person wants, by ``WHOLEBATCH_KERNELS`` in the environment: for tests and measurements."""

from __future__ import annotations

import functools
import os
from typing import Literal, cast

Wish = Literal["", "native", "gpu", "reference"]


@functools.cache
def wished() -> Wish:
    """``""`` or ``native``: the compiled part on the CPU, Triton on a GPU. ``reference``: torch's own operations on
    both. ``gpu``: the kernels of the GPU for tensors of the CPU too, which Triton's interpreter runs
    (``TRITON_INTERPRET=1``).

    Raises:
        ValueError: another value.
    """
    wish = os.environ.get("WHOLEBATCH_KERNELS", "")
    if wish not in ("", "native", "gpu", "reference"):
        raise ValueError(f"WHOLEBATCH_KERNELS is {wish!r}; known are native, gpu and reference")
    return cast(Wish, wish)
