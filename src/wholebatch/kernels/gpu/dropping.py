"""The kernel of :mod:`wholebatch.kernels.gpu.dropout`, launched."""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.kernels.gpu import dropout
from wholebatch.kernels.gpu.launching import launch
from wholebatch.kernels.gpu.plan import cdiv

ROWS, QUADS = 16, 16  # of a program: 8 elements for each of 128 threads


def drop(x: Tensor, layer: int, step: Tensor, seed: int, p: float, first: Tensor) -> Tensor:
    """``x * mask / (1 - p)`` of a matrix in float32, bfloat16 or float16; a gradient goes the same way.

    Args:
        layer: the hidden layer, from 0.
        step: of the whole training, int64 of no dimension, on the device.
        first: the place of the first row in the whole mini-batch, likewise.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, columns = x.shape
    if x.numel():
        launch(
            dropout.drop,
            (cdiv(rows, ROWS), cdiv(columns, 4 * QUADS)),
            4,
            x,
            *(x, out, step, first, seed, layer, int(p * 2**32), 1 - p, rows, columns, ROWS, QUADS),
        )
    return out
