"""The kernels of the forward pass.

They are not compiled anew for another number of examples, as a last mini-batch has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wholebatch.kernels.gpu.arithmetic import (
    activate,
    before_activation,
    find_counted,
    find_moments,
    find_scale,
    find_tile,
    finish_statistics,
    load_vector,
    merge_moments,
)


@triton.jit(do_not_specialize=["n"])
def train_whole(
    z, y, residual, mask, weight, bias, statistics, running_mean, running_var, eps, momentum, slope, n, c_units,
    length_units, C_UNIT: tl.constexpr, LENGTH_UNIT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    RUN: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """All of a tile's channels: ``statistics`` ``(3 or 4, C)``, and ``y`` where there is one to write."""
    c, length = c_units * C_UNIT, length_units * LENGTH_UNIT
    tile = tl.program_id(0)
    offsets, positions, inside = find_tile(0, tile, n, c, length, ROWS, CHANNELS, RUN, WIDE)
    counted = find_counted(inside, mask, positions)
    x = tl.load(z + offsets, mask=counted, other=0.0).to(tl.float32)
    count, about, mean, m2 = find_moments(x, counted, mask, 0, n, length, ROWS, RUN)
    mean = about + mean
    channels = tile * CHANNELS + tl.arange(0, CHANNELS)
    rstd = finish_statistics(
        channels, c, count, mean, m2, statistics, running_mean, running_var, eps, momentum, mask is not None
    )
    if y is not None:
        STORED: tl.constexpr = y.dtype.element_ty
        scale = find_scale(weight, rstd, channels, c)
        t = before_activation(x, mean, scale, bias, residual, channels, c, offsets, inside, STORED)
        result = activate(t, slope, ACTIVATION)
        if mask is not None:
            result = tl.where(counted, result, 0.0)
        tl.store(y + offsets, result.to(STORED), mask=inside)


@triton.jit(do_not_specialize=["n", "steps"])
def find_parts(
    z, mask, parts, steps, n, c_units, length_units, C_UNIT: tl.constexpr, LENGTH_UNIT: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Moments of every ``programs``-th tile, as ``parts`` ``(programs, 4, C)``: count, about, mean, M2."""
    c, length = c_units * C_UNIT, length_units * LENGTH_UNIT
    program, tile = tl.program_id(0), tl.program_id(1)
    count = tl.zeros((CHANNELS,), tl.float32)
    about = tl.zeros((CHANNELS,), tl.float32)
    mean = tl.zeros((CHANNELS,), tl.float32)
    m2 = tl.zeros((CHANNELS,), tl.float32)
    for step in range(program, steps, tl.num_programs(0)):
        offsets, positions, inside = find_tile(step, tile, n, c, length, ROWS, CHANNELS, RUN, WIDE)
        counted = find_counted(inside, mask, positions)
        x = tl.load(z + offsets, mask=counted, other=0.0).to(tl.float32)
        k, about_k, mean_k, m2_k = find_moments(x, counted, mask, step, n, length, ROWS, RUN)
        count, about, mean, m2 = merge_moments(count, about, mean, m2, k, about_k, mean_k, m2_k)
    channels = tile * CHANNELS + tl.arange(0, CHANNELS)
    part = parts + program * 4 * c + channels
    tl.store(part, count, mask=channels < c)
    tl.store(part + c, about, mask=channels < c)
    tl.store(part + 2 * c, mean, mask=channels < c)
    tl.store(part + 3 * c, m2, mask=channels < c)


@triton.jit
def merge_parts(
    parts, statistics, running_mean, running_var, eps, momentum, programs, c, PROGRAMS: tl.constexpr,
    CHANNELS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """``statistics`` from ``parts``, all parts of a channel at once.

    Chan's formula for many, about one part's mean: ``mean = sum(n_p mean_p) / n`` and
    ``M2 = sum(M2_p + n_p (mean_p - mean)^2)``.
    """
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    program = tl.arange(0, PROGRAMS)
    inside = (program < programs)[:, None] & (channels < c)[None, :]
    part = parts + program[:, None] * 4 * c + channels[None, :]
    counts = tl.load(part, mask=inside, other=0.0)
    abouts = tl.load(part + c, mask=inside, other=0.0)
    count = tl.sum(counts, 0)
    divisor = tl.maximum(count, 1.0)
    about = tl.where(count > 0.0, tl.max(tl.where(counts > 0.0, abouts, -float("inf")), 0), 0.0)
    means = (abouts - about[None, :]) + tl.load(part + 2 * c, mask=inside, other=0.0)
    means = tl.where(counts > 0.0, means, 0.0)
    mean = tl.div_rn(tl.sum(counts * means, 0), divisor)
    off = tl.where(counts > 0.0, means - mean[None, :], 0.0)
    m2 = tl.sum(tl.load(part + 3 * c, mask=inside, other=0.0) + counts * off * off, 0)
    mean = about + mean
    finish_statistics(channels, c, count, mean, m2, statistics, running_mean, running_var, eps, momentum, COUNTED)


@triton.jit(do_not_specialize=["n", "steps"])
def normalise(
    z, y, residual, mask, mean, rstd, weight, bias, slope, steps, n, c_units, length_units, C_UNIT: tl.constexpr,
    LENGTH_UNIT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``y`` of one tile; the last tile first."""
    c, length = c_units * C_UNIT, length_units * LENGTH_UNIT
    STORED: tl.constexpr = y.dtype.element_ty
    tile = tl.program_id(1)
    offsets, positions, inside = find_tile(steps - 1 - tl.program_id(0), tile, n, c, length, ROWS, CHANNELS, RUN, WIDE)
    counted = find_counted(inside, mask, positions)
    x = tl.load(z + offsets, mask=counted, other=0.0).to(tl.float32)
    channels = tile * CHANNELS + tl.arange(0, CHANNELS)
    scale = find_scale(weight, load_vector(rstd, channels, c), channels, c)
    t = before_activation(
        x, load_vector(mean, channels, c), scale, bias, residual, channels, c, offsets, inside, STORED
    )
    result = activate(t, slope, ACTIVATION)
    if mask is not None:
        result = tl.where(counted, result, 0.0)
    tl.store(y + offsets, result.to(STORED), mask=inside)
