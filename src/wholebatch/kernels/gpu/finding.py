"""Finding Triton, and saying once, with the remedy, where it is missing."""

from __future__ import annotations

import functools
import importlib
import os
import warnings

import torch
from torch import Tensor

from wholebatch.kernels.wish import wished

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST = 1 << 30  # elements of a channel: they are numbered in 32 bits
_PLAIN = (Tensor, torch.nn.Parameter)


@functools.cache
def _find() -> str:
    """Why Triton cannot be used; empty: it can."""
    try:
        importlib.import_module("triton.language")
    except ImportError as error:
        return str(error)
    return ""


@functools.cache
def _say_missing(why: str) -> None:
    warnings.warn(
        f"batch norm on the GPU runs on torch's own operations, which is slower: Triton cannot be used here ({why}). "
        "Install it: pip install 'wholebatch[gpu]'",
        RuntimeWarning,
        stacklevel=4,
    )


def triton_available(*, say: bool = False) -> bool:
    """Whether Triton is there; with ``say``, a missing one is said once per process."""
    why = _find()
    if why and say:
        _say_missing(why)
    return not why


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of the CPU; it reads this as it is imported."""
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "true", "on", "yes", "y")


@functools.cache
def _can_compile(device: int | None) -> bool:
    """Triton compiles for compute capability 7.5 and newer (AMD's count on from 9)."""
    return torch.cuda.get_device_capability(device) >= (7, 5)


@functools.cache
def _takes_host_tensors() -> bool:
    """Whether tensors of the CPU come here as well: for tests alone.

    Raises:
        ValueError: that was asked for, and nothing here can run it.
    """
    if wished() != "gpu":
        return False
    if not triton_available() or not interpreted():
        raise ValueError(
            "WHOLEBATCH_KERNELS=gpu runs the GPU's kernels on the CPU, by Triton's interpreter: install Triton "
            "(pip install 'wholebatch[gpu]') and set TRITON_INTERPRET=1"
        )
    return True


def serves(z: Tensor) -> bool:
    """Whether the kernels in Triton can take this input, and are to."""
    if not z.is_cuda:
        return _takes_host_tensors() and z.is_cpu and _fits(z)
    return (
        wished() != "reference"
        and _fits(z)
        and not interpreted()
        and _can_compile(z.device.index)
        and triton_available(say=True)
    )


def _fits(z: Tensor) -> bool:
    """Subclasses of tensors (FakeTensor, DTensor, a person's own) may have no memory at all, or give it a meaning."""
    return (
        type(z) in _PLAIN and z.dtype in DTYPES and z.layout is torch.strided and z.numel() <= MOST * max(z.shape[1], 1)
    )
