"""Masks as the kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(mask: Tensor | None, z: Tensor) -> Tensor | None:
    """A mask that broadcasts to ``z`` from ``(N, 1, *)``, with a byte for each position."""
    if mask is None:
        return None
    return mask.expand(z.shape[0], 1, *z.shape[2:]).contiguous().view(torch.uint8)
