"""Dropout's masks made on the device: the words of :mod:`wholebatch.feedforward.dropout`, in torch's integers.

Nothing is drawn and no generator has a state, so a captured step replays with the masks of its own step: the step is a
number in the device's memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def keep_mask(
    rows: int, columns: int, layer: int, step: Tensor, seed: int, p: float, first: Tensor | int = 0
) -> Tensor:
    """``(rows, columns)`` bool: :func:`wholebatch.feedforward.dropout.dropout_mask`, where ``step`` is.

    Args:
        step: int64 of no dimension, from 0.
        first: the place of the first row in the whole mini-batch; a number, or int64 of no dimension on the device.
    """
    quads = -(-columns // 4)
    c0 = torch.arange(quads, device=step.device)[None, :]
    c1 = torch.arange(rows, device=step.device)[:, None] + first
    c2, c3 = torch.full_like(step, layer), step & _MASK
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # Of unsigned 32-bit factors the 64 bits of an int64 product are the whole product; a shift that keeps the sign
        # is masked.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    words = torch.stack([c0, c1, c2, c3], dim=-1).reshape(rows, quads * 4)
    return words[:, :columns] >= int(p * 2**32)
