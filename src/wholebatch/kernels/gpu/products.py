"""Matrix products with batch norm in them: moments in the epilogue, normalisation in the next product's prologue.

    multiply         Z = H W^T                     and the moments of each tile of Z
    multiply_back    G = dZ W, through the activation   and the two sums of each tile
    multiply_across  dW = dZ^T H                   over a part of the rows

Neither ``H = activation(scale * (z - mean) + bias)`` nor ``dZ`` is ever in memory: they are formed from z, and from g
and z, in the tile that is multiplied. Tiles are of two dimensions; the rest is as in
:mod:`wholebatch.kernels.gpu.arithmetic`, and products are of the numbers that an unfused operation would have stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wholebatch.kernels.gpu.arithmetic import activate, find_moments, load_vector, through_activation


@triton.jit
def load_tile(x, rows, columns, m, width, WIDE: tl.constexpr):
    """``(values, inside)`` of a tile of ``(m, width)``, in float32; 0 outside."""
    inside = (rows < m)[:, None] & (columns < width)[None, :]
    if WIDE:
        rows = rows.to(tl.int64)
    return tl.load(x + rows[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def find_before(x, mean, rstd, weight, bias, columns, width, STORED: tl.constexpr):
    """``t`` of a tile of z; backward, which forms it again, sees the signs that forward saw.

    These kernels are compiled with contraction, for the products' sake, so what may be contracted here is.
    """
    middle, scale = load_vector(mean, columns, width), load_vector(rstd, columns, width)
    if weight is not None:
        scale = load_vector(weight, columns, width) * scale
    t = x - middle[None, :]
    if bias is not None:
        shift = load_vector(bias, columns, width)[None, :]
        t = tl.fma(t, tl.broadcast_to(scale[None, :], t.shape), tl.broadcast_to(shift, t.shape))
    else:
        t = t * scale[None, :]
    return t.to(STORED).to(tl.float32)


@triton.jit
def load_inputs(
    x, mean, rstd, weight, bias, slope, rows, columns, m, width, NORMALISED: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of a product's input: x itself, or the activation of what batch norm makes of it; 0 outside."""
    STORED: tl.constexpr = x.dtype.element_ty
    values, inside = load_tile(x, rows, columns, m, width, WIDE)
    if NORMALISED:
        t = find_before(values, mean, rstd, weight, bias, columns, width, STORED)
        values = tl.where(inside, activate(t, slope, ACTIVATION), 0.0)
    return values.to(STORED)


@triton.jit
def load_gradients(
    g, z, mean, rstd, weight, first, second, count, rows, columns, m, width, FORMED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of dZ: g itself, or batch norm's derivative, from the two sums of the whole mini-batch; 0 outside."""
    STORED: tl.constexpr = g.dtype.element_ty
    values, inside = load_tile(g, rows, columns, m, width, WIDE)
    if FORMED:
        x, _ = load_tile(z, rows, columns, m, width, WIDE)
        inverse = load_vector(rstd, columns, width)
        normalised = (x - load_vector(mean, columns, width)[None, :]) * inverse[None, :]
        if weight is not None:
            inverse = load_vector(weight, columns, width) * inverse
        of_first = tl.div_rn(load_vector(first, columns, width), count)
        of_second = tl.div_rn(load_vector(second, columns, width), count)
        values = (values - of_first[None, :] - normalised * of_second[None, :]) * inverse[None, :]
        values = tl.where(inside, values, 0.0)
    return values.to(STORED)


@triton.jit(do_not_specialize=["m"])
def multiply(
    x, mean, rstd, weight, bias, slope, w, added, z, parts, m, k, n, NORMALISED: tl.constexpr,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of ``Z (m, n) = H (m, k) W^T + added``; where ``parts`` ``(row tiles, 4, n)`` is, its moments.

    They are of Z as it is stored.
    """
    STORED: tl.constexpr = z.dtype.element_ty
    tile = tl.program_id(0)
    rows, columns = tile * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, k, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        h = load_inputs(x, mean, rstd, weight, bias, slope, rows, depth, m, k, NORMALISED, ACTIVATION, WIDE)
        there = (depth < k)[:, None] & (columns < n)[None, :]
        b = tl.load(w + columns[None, :] * k + depth[:, None], mask=there, other=0.0)
        total = tl.dot(h, b, total, input_precision=PRECISION)
    if added is not None:
        total = total + load_vector(added, columns, n).to(tl.float32)[None, :]
    stored = total.to(STORED)
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    places = rows.to(tl.int64) if WIDE else rows
    tl.store(z + places[:, None] * n + columns[None, :], stored, mask=inside)
    if parts is not None:
        values = tl.where(inside, stored.to(tl.float32), 0.0)
        count, about, middle, m2 = find_moments(
            values[:, :, None], inside[:, :, None], None, tile, m, 1, ROWS, 1
        )  # fmt: skip
        part = parts + tile * 4 * n + columns
        tl.store(part, tl.zeros((COLUMNS,), tl.float32) + count, mask=columns < n)
        tl.store(part + n, about, mask=columns < n)
        tl.store(part + 2 * n, middle, mask=columns < n)
        tl.store(part + 3 * n, m2, mask=columns < n)


@triton.jit(do_not_specialize=["m"])
def multiply_back(
    g, z, mean, rstd, weight, first, second, count, w, before, before_mean, before_rstd, before_weight, before_bias,
    slope, out, parts, m, n, k, FORMED: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of ``dZ (m, n) W`` through the activation before it, ``(m, k)``; ``parts`` ``(row tiles, 2, k)``: its two
    sums, of dt and of ``dt * xhat``."""
    STORED: tl.constexpr = out.dtype.element_ty
    tile = tl.program_id(0)
    rows, columns = tile * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, n, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        dz = load_gradients(g, z, mean, rstd, weight, first, second, count, rows, depth, m, n, FORMED, WIDE)
        there = (depth < n)[:, None] & (columns < k)[None, :]
        b = tl.load(w + depth[:, None] * k + columns[None, :], mask=there, other=0.0)
        total = tl.dot(dz, b, total, input_precision=PRECISION)
    x, inside = load_tile(before, rows, columns, m, k, WIDE)
    t = find_before(x, before_mean, before_rstd, before_weight, before_bias, columns, k, STORED)
    dt = through_activation(total.to(STORED).to(tl.float32), t, slope, ACTIVATION, STORED)
    dt = tl.where(inside, dt, 0.0).to(STORED)
    places = rows.to(tl.int64) if WIDE else rows
    tl.store(out + places[:, None] * k + columns[None, :], dt, mask=inside)
    middle, inverse = load_vector(before_mean, columns, k), load_vector(before_rstd, columns, k)
    normalised = (x - middle[None, :]) * inverse[None, :]
    part = parts + tile * 2 * k + columns
    tl.store(part, tl.sum(dt.to(tl.float32), 0), mask=columns < k)
    tl.store(part + k, tl.sum(dt.to(tl.float32) * normalised, 0), mask=columns < k)


@triton.jit(do_not_specialize=["m", "share"])
def multiply_across(
    g, z, mean, rstd, weight, first, second, count, x, before_mean, before_rstd, before_weight, before_bias, slope, out,
    share, m, n, k, FORMED: tl.constexpr, NORMALISED: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of ``dZ^T H`` ``(n, k)`` over ``share`` rows, into ``out`` ``(shares, n, k)``."""
    part = tl.program_id(2)
    fans, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    end = tl.minimum(m, (part + 1) * share)
    for start in range(part * share, end, DEPTH):
        rows = start + tl.arange(0, DEPTH)
        dz = load_gradients(g, z, mean, rstd, weight, first, second, count, rows, fans, end, n, FORMED, WIDE)
        h = load_inputs(
            x, before_mean, before_rstd, before_weight, before_bias, slope, rows, columns, end, k, NORMALISED,
            ACTIVATION, WIDE,
        )  # fmt: skip
        total = tl.dot(tl.trans(dz), h, total, input_precision=PRECISION)
    inside = (fans < n)[:, None] & (columns < k)[None, :]
    place = part * n + fans
    if WIDE:
        place = place.to(tl.int64)
    tl.store(out + place[:, None] * k + columns[None, :], total.to(out.dtype.element_ty), mask=inside)
