"""Starting a kernel, on the device that its tensors are on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wholebatch.kernels.gpu.finding import interpreted

LINEAR, RELU, LEAKY = 0, 1, 2  # as in arithmetic.py


def activation_of(slope: float) -> int:
    """The kernels' ``ACTIVATION`` for a slope below 0."""
    return LINEAR if slope == 1 else RELU if slope == 0 else LEAKY


def launch(
    kernel: Any, grid: tuple[int, ...], warps: int, on: Tensor, *arguments: Any, contracted: bool = False
) -> None:
    """Start ``kernel`` on the current stream of the device of ``on``.

    Args:
        kernel: a function of Triton's.
        grid: programs in each dimension, at least 1 each.
        warps: of a program.
        on: one of its tensors.
        arguments: the kernel's.
        contracted: multiply and add in one where the compiler sees it, as products want it.
    """
    options = _options(warps, contracted=contracted)
    if not on.is_cuda or on.device.index == torch.cuda.current_device():
        kernel[grid](*arguments, **options)
    else:  # Triton starts kernels on the current device
        with torch.cuda.device(on.device):
            kernel[grid](*arguments, **options)


def _options(warps: int, *, contracted: bool = False) -> dict[str, Any]:
    """No contraction else: element by element the numbers are torch's, and the sign of t is the same in both passes."""
    return {} if interpreted() else {"num_warps": warps, "enable_fp_fusion": contracted}
