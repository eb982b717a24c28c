"""Dropout masks that depend on where an element stands, never on who computes it.

A generator that hands out numbers in order of arrival would give other masks for other thread counts. A counter-based
one gives element (row, column) of layer l at step s the same number whoever asks: Philox4x32-10, keyed by the seed,
with the counter ``(column // 4, row, layer, step)`` and the four words of its answer for four neighbouring columns.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The native engine holds
the same function; this is its twin.
"""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10: counters ``(..., 4)`` of 32-bit words and a 64-bit key to four 32-bit words each, as uint64."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def dropout_mask(rows: int, columns: int, layer: int, step: int, seed: int, p: float, first: int = 0) -> np.ndarray:
    """``(rows, columns)`` of bool: which elements of hidden layer ``layer`` (from 0) stay at step ``step`` (from 0).

    The rows are those of a mini-batch from its row ``first`` on. An element stays where its 32-bit word is at least
    ``floor(p * 2^32)``; what stays is scaled by ``1 / (1 - p)``.
    """
    quads = -(-columns // 4)
    counter = np.zeros((rows, quads, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(quads)
    counter[..., 1] = np.arange(first, first + rows)[:, None]
    counter[..., 2] = layer
    counter[..., 3] = step & 0xFFFFFFFF
    words = philox(counter, seed).reshape(rows, quads * 4)[:, :columns]
    return words >= np.uint64(int(p * 2**32))
