"""The kernels of the backward pass."""

from __future__ import annotations

import triton
import triton.language as tl

from wholebatch.kernels.gpu.arithmetic import (
    LINEAR,
    before_activation,
    find_counted,
    find_gradient,
    find_scale,
    find_tile,
    load_vector,
    through_activation,
)


@triton.jit
def differentiate_tile(
    g, z, residual, mask, mean, rstd, scale, bias, slope, channels, c, offsets, positions, inside,
    ACTIVATION: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """``(dt, xhat, counted)`` of a tile; ``dt`` is 0 where nothing counts."""
    counted = find_counted(inside, mask, positions)
    x = tl.load(z + offsets, mask=counted, other=0.0).to(tl.float32)
    dt = tl.load(g + offsets, mask=counted, other=0.0).to(tl.float32)
    if ACTIVATION != LINEAR:
        t = before_activation(x, mean, scale, bias, residual, channels, c, offsets, inside, STORED)
        dt = through_activation(dt, t, slope, ACTIVATION, STORED)
    return dt, (x - mean[None, :, None]) * rstd[None, :, None], counted


@triton.jit(do_not_specialize=["n"])
def differentiate_whole(
    g, z, dz, residual, dresidual, mask, mean, rstd, weight, bias, counts, count, dweight, dbias, slope, n,
    c_units, length_units, C_UNIT: tl.constexpr, LENGTH_UNIT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    RUN: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """All of a tile's channels: the two sums, as ``dbias`` and ``dweight``, and ``dz`` where there is one to write."""
    c, length = c_units * C_UNIT, length_units * LENGTH_UNIT
    STORED: tl.constexpr = z.dtype.element_ty
    tile = tl.program_id(0)
    channels = tile * CHANNELS + tl.arange(0, CHANNELS)
    middle, inverse = load_vector(mean, channels, c), load_vector(rstd, channels, c)
    scale = find_scale(weight, inverse, channels, c)
    offsets, positions, inside = find_tile(0, tile, n, c, length, ROWS, CHANNELS, RUN, WIDE)
    dt, normalised, counted = differentiate_tile(
        g, z, residual, mask, middle, inverse, scale, bias, slope, channels, c, offsets, positions, inside,
        ACTIVATION, STORED,
    )  # fmt: skip
    first, second = tl.sum(tl.sum(dt, 2), 0), tl.sum(tl.sum(dt * normalised, 2), 0)
    tl.store(dbias + channels, first, mask=channels < c)
    tl.store(dweight + channels, second, mask=channels < c)
    if dresidual is not None:
        tl.store(dresidual + offsets, dt.to(STORED), mask=inside)
    if dz is not None:
        if counts is not None:
            count = load_vector(counts, channels, c)
        result = find_gradient(dt, normalised, scale, first, second, count, True)
        if mask is not None:
            result = tl.where(counted, result, 0.0)
        tl.store(dz + offsets, result.to(STORED), mask=inside)


@triton.jit(do_not_specialize=["n", "steps"])
def find_part_sums(
    g, z, residual, dresidual, mask, mean, rstd, weight, bias, parts, slope, steps, n, c_units, length_units,
    C_UNIT: tl.constexpr, LENGTH_UNIT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, RUN: tl.constexpr,
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The two sums over every ``programs``-th tile, as ``parts`` ``(programs, 2, C)``; ``dt`` where it is wanted."""
    c, length = c_units * C_UNIT, length_units * LENGTH_UNIT
    STORED: tl.constexpr = z.dtype.element_ty
    program, tile = tl.program_id(0), tl.program_id(1)
    channels = tile * CHANNELS + tl.arange(0, CHANNELS)
    middle, inverse = load_vector(mean, channels, c), load_vector(rstd, channels, c)
    scale = find_scale(weight, inverse, channels, c)
    # A sum for each lane: lanes meet once, at the end.
    firsts = tl.zeros((ROWS, CHANNELS, RUN), tl.float32)
    seconds = tl.zeros((ROWS, CHANNELS, RUN), tl.float32)
    for step in range(program, steps, tl.num_programs(0)):
        offsets, positions, inside = find_tile(step, tile, n, c, length, ROWS, CHANNELS, RUN, WIDE)
        dt, normalised, _ = differentiate_tile(
            g, z, residual, mask, middle, inverse, scale, bias, slope, channels, c, offsets, positions, inside,
            ACTIVATION, STORED,
        )  # fmt: skip
        if dresidual is not None:
            tl.store(dresidual + offsets, dt.to(STORED), mask=inside)
        firsts += dt
        seconds += dt * normalised
    part = parts + program * 2 * c + channels
    tl.store(part, tl.sum(tl.sum(firsts, 2), 0), mask=channels < c)
    tl.store(part + c, tl.sum(tl.sum(seconds, 2), 0), mask=channels < c)


@triton.jit
def merge_part_sums(parts, dweight, dbias, programs, c, PROGRAMS: tl.constexpr, CHANNELS: tl.constexpr):
    """The sums of all parts."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    program = tl.arange(0, PROGRAMS)
    inside = (program < programs)[:, None] & (channels < c)[None, :]
    part = parts + program[:, None] * 2 * c + channels[None, :]
    tl.store(dbias + channels, tl.sum(tl.load(part, mask=inside, other=0.0), 0), mask=channels < c)
    tl.store(dweight + channels, tl.sum(tl.load(part + c, mask=inside, other=0.0), 0), mask=channels < c)


@triton.jit(do_not_specialize=["n", "steps"])
def differentiate(
    g, z, dz, residual, dresidual, mask, mean, rstd, weight, bias, counts, count, dweight, dbias, slope, steps, n,
    c_units, length_units, C_UNIT: tl.constexpr, LENGTH_UNIT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    RUN: tl.constexpr, WIDE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``dz`` of one tile from the two sums (None: statistics are constants), and ``dt``; the last tile first."""
    c, length = c_units * C_UNIT, length_units * LENGTH_UNIT
    STORED: tl.constexpr = z.dtype.element_ty
    tile = tl.program_id(1)
    channels = tile * CHANNELS + tl.arange(0, CHANNELS)
    middle, inverse = load_vector(mean, channels, c), load_vector(rstd, channels, c)
    scale = find_scale(weight, inverse, channels, c)
    offsets, positions, inside = find_tile(steps - 1 - tl.program_id(0), tile, n, c, length, ROWS, CHANNELS, RUN, WIDE)
    dt, normalised, counted = differentiate_tile(
        g, z, residual, mask, middle, inverse, scale, bias, slope, channels, c, offsets, positions, inside,
        ACTIVATION, STORED,
    )  # fmt: skip
    if dresidual is not None:
        tl.store(dresidual + offsets, dt.to(STORED), mask=inside)
    if dbias is not None:
        if counts is not None:
            count = load_vector(counts, channels, c)
        first, second = load_vector(dbias, channels, c), load_vector(dweight, channels, c)
        result = find_gradient(dt, normalised, scale, first, second, count, True)
    else:
        result = find_gradient(dt, normalised, scale, 0.0, 0.0, count, False)
    if mask is not None:
        result = tl.where(counted, result, 0.0)
    tl.store(dz + offsets, result.to(STORED), mask=inside)
