"""What a kernel of batch norm does on one worker's part, and the choice among the kernels that are here.

``z`` is ``(N, C, *)``: channels in dimension 1. All statistics are ``(C,)`` in the accumulation dtype: float64 for
float64, float32 for everything else.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wholebatch.moments import Moments


class Affine(NamedTuple):
    """What follows the normalisation ``xhat = (z - mean) * rstd``, and is fused with it.

    ``t = weight * xhat + bias + residual`` is rounded to ``z.dtype`` wherever an unfused operation would have stored
    it, and ``y = t if t > 0 else slope * t``.

    Attributes:
        weight, bias: ``(C,)`` in the accumulation dtype, or None for 1 and 0.
        residual: of ``z``'s shape and dtype, or None.
        slope: 1 no activation, 0 ReLU, else leaky ReLU.
        mask: bool, True where an element counts; broadcastable to ``z`` from ``(N, 1, *)``. ``y`` and gradients are 0
            where it is False. None: all count.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    slope: float = 1.0
    mask: Tensor | None = None


class Kernel(Protocol):
    """The arithmetic of batch norm on one part. Sums and moments run over all but dimension 1, masked left out."""

    def moments(self, z: Tensor, mask: Tensor | None) -> Moments:
        """Count, mean and M2 of every channel."""
        ...

    def apply(self, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        """``y``, of ``z``'s shape, dtype and memory format."""
        ...

    def forward(self, z: Tensor, eps: float, affine: Affine) -> tuple[Tensor, Moments, Tensor]:
        """``(y, moments, rstd)`` where this part is the whole mini-batch: both of the above, in fewer memory sweeps."""
        ...

    def sums(self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        """``(2, C)``: the sums of ``dt`` and of ``dt * xhat``, where ``dt = g * dy/dt`` and ``g`` is ``dL/dy``."""
        ...

    def input_gradient(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, sums: Tensor | None, count: float
    ) -> tuple[Tensor, Tensor | None]:
        """``dz`` and ``dresidual`` (None without one).

        ``dz = weight * rstd * (dt - sums[0]/count - xhat * sums[1]/count)`` with the sums and the count of the whole
        mini-batch; with sums None (statistics that are constants) ``dz = weight * rstd * dt``. ``dresidual = dt``.
        """
        ...

    def backward(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, count: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """``(dz, dresidual, sums)`` where this part is the whole mini-batch, in fewer memory sweeps."""
        ...


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and parameters for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
