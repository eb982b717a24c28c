"""Dropout in one launch each way: masks are made where they are used, by Triton's own Philox, and never stored.

The words are those of :mod:`wholebatch.feedforward.dropout`: of four neighbouring columns, a row, a layer and a step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["seed", "layer", "rows"])
def drop(
    x, out, step, first, seed, layer, threshold, share, rows, columns, ROWS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """``x / share`` where an element's word is at least ``threshold``, else 0. ``step`` and ``first`` are in memory."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    quad = tl.program_id(1) * QUADS + tl.arange(0, QUADS)
    nothing = tl.zeros((ROWS, QUADS), tl.uint32)
    place = (tl.load(first) + row).to(tl.uint32)
    c0, c1 = nothing + quad.to(tl.uint32)[None, :], nothing + place[:, None]
    c2, c3 = nothing + layer.to(tl.uint32), nothing + tl.load(step).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, 4 * QUADS))
    column = tl.program_id(1) * 4 * QUADS + tl.arange(0, 4 * QUADS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offsets = row.to(tl.int64)[:, None] * columns + column[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    divisor = tl.zeros((ROWS, 4 * QUADS), tl.float32) + share
    values = tl.where(words.to(tl.int64) >= threshold, tl.div_rn(values, divisor), 0.0)
    tl.store(out + offsets, values.to(out.dtype.element_ty), mask=inside)
