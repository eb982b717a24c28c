"""What the kernels are made of: where a tile lies, moments, what follows the normalisation, and its derivative.

Tiles are ``(rows, channels, run)`` of a tensor ``(N, C, L)`` in memory, see :mod:`wholebatch.kernels.gpu.plan`;
vectors are ``(channels,)``. All arithmetic is in float32 and uncontracted (the kernels are compiled without fused
multiply-adds): so the sign of ``t`` that backward forms again is the one that forward saw, whatever was compiled
around it, and element by element the numbers are those of torch's own operations.

In capitals: what is known when a kernel is compiled. ``C = c_units * C_UNIT`` tells the compiler that rows begin at
multiples of ``C_UNIT`` elements, without which it could not read 16 bytes at once; ``L`` likewise.
"""

from __future__ import annotations

import triton
import triton.language as tl

LINEAR: tl.constexpr = tl.constexpr(0)
RELU: tl.constexpr = tl.constexpr(1)
LEAKY: tl.constexpr = tl.constexpr(2)


@triton.jit
def find_tile(
    step, tile, n, c, length, ROWS: tl.constexpr, CHANNELS: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr
):
    """``(offsets, positions, inside)``: of the elements, of their mask, and which of them there are."""
    runs = (length + RUN - 1) // RUN
    row = ((step // runs) * ROWS + tl.arange(0, ROWS))[:, None, None]
    channel = (tile * CHANNELS + tl.arange(0, CHANNELS))[None, :, None]
    place = ((step % runs) * RUN + tl.arange(0, RUN))[None, None, :]
    inside = (row < n) & (channel < c) & (place < length)
    if WIDE:
        row = row.to(tl.int64)
    return (row * c + channel) * length + place, row * length + place, inside


@triton.jit
def find_counted(inside, mask, positions):
    """Which elements count: there, and not masked."""
    if mask is not None:
        inside = inside & (tl.load(mask + positions, mask=inside, other=0) != 0)
    return inside


@triton.jit
def find_moments(x, counted, mask, step, n, length, ROWS: tl.constexpr, RUN: tl.constexpr):
    """``(count, about, mean, M2)`` of a tile in registers; its mean is ``about + mean``.

    Two passes: ``mean`` is the rest of the mean after the first. What is taken off M2 is the square of that rest, some
    roundings in size. ``x`` is 0 where it is not counted.
    """
    if mask is not None:
        count = tl.sum(tl.sum(counted.to(tl.float32), 2), 0)
    else:
        runs = (length + RUN - 1) // RUN
        rows = tl.minimum(n - step // runs * ROWS, ROWS)
        count = (rows * tl.minimum(length - step % runs * RUN, RUN)).to(tl.float32)
    divisor = tl.maximum(count, 1.0)
    about = tl.div_rn(tl.sum(tl.sum(x, 2), 0), divisor)
    off = tl.where(counted, x - about[None, :, None], 0.0)
    rest = tl.sum(tl.sum(off, 2), 0)
    mean = tl.div_rn(rest, divisor)
    m2 = tl.sum(tl.sum(off * off, 2), 0) - rest * mean
    return count, about, mean, tl.where(m2 < 0.0, 0.0, m2)


@triton.jit
def merge_moments(count, about, mean, m2, other_count, other_about, other_mean, other_m2):
    """Chan's formula; either may have no elements.

    A mean is kept as ``about + mean``, where ``about`` is that of whoever came first: of inputs far from zero the
    rounded means of parts would differ by roundings as much as by what they differ.
    """
    both = count + other_count
    share = tl.div_rn(other_count, tl.maximum(both, 1.0))
    about = tl.where(count == 0.0, other_about, about)
    delta = (other_about - about) + (other_mean - mean)
    return both, about, mean + delta * share, m2 + other_m2 + delta * delta * (count * share)


@triton.jit
def finish_statistics(
    channels, c, count, mean, m2, statistics, running_mean, running_var, eps, momentum, COUNTED: tl.constexpr,
):  # fmt: skip
    """Store mean, M2 and rstd (and the count, if ``COUNTED``), move what runs; returns rstd.

    Of no elements running statistics stay, and the variance's of one, which has no unbiased variance.
    """
    there = channels < c
    count = tl.zeros_like(mean) + count  # without a mask it was one number for all
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(m2, tl.maximum(count, 1.0)) + eps))
    tl.store(statistics + channels, mean, mask=there)
    tl.store(statistics + c + channels, m2, mask=there)
    tl.store(statistics + 2 * c + channels, rstd, mask=there)
    if COUNTED:
        tl.store(statistics + 3 * c + channels, count, mask=there)
    if running_mean is not None:
        _move(running_mean + channels, mean, momentum, there & (count > 0.0))
    if running_var is not None:
        unbiased = tl.div_rn(m2, tl.maximum(count - 1.0, 1.0))
        _move(running_var + channels, unbiased, momentum, there & (count > 1.0))
    return rstd


@triton.jit
def _move(running, new, momentum, moves):
    """As torch.lerp does it: exact at both ends."""
    old = tl.load(running, mask=moves, other=0.0)
    moved = tl.where(momentum < 0.5, old + momentum * (new - old), new - (new - old) * (1.0 - momentum))
    tl.store(running, moved, mask=moves)


@triton.jit
def load_vector(pointer, channels, c):
    """A vector of the parameters or statistics."""
    return tl.load(pointer + channels, mask=channels < c, other=0.0)


@triton.jit
def find_scale(weight, rstd, channels, c):
    """``weight * rstd``."""
    if weight is not None:
        rstd = load_vector(weight, channels, c) * rstd
    return rstd


@triton.jit
def before_activation(x, mean, scale, bias, residual, channels, c, offsets, inside, STORED: tl.constexpr):
    """``t``, rounded wherever an unfused operation would have stored it.

    The mean is taken off first: ``scale * x + offset`` would lose digits where inputs are far from zero.
    """
    t = (x - mean[None, :, None]) * scale[None, :, None]
    if bias is not None:
        t = t + load_vector(bias, channels, c)[None, :, None]
    t = t.to(STORED).to(tl.float32)
    if residual is not None:
        t = (t + tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)).to(STORED).to(tl.float32)
    return t


@triton.jit
def activate(t, slope, ACTIVATION: tl.constexpr):
    """``y``: ``t`` where it is above 0, else ``slope * t``. Not a number stays so."""
    if ACTIVATION == RELU:
        t = tl.where(t <= 0.0, 0.0, t)
    if ACTIVATION == LEAKY:
        t = tl.where(t > 0.0, t, t * slope)
    return t


@triton.jit
def through_activation(g, t, slope, ACTIVATION: tl.constexpr, STORED: tl.constexpr):
    """``dt``, rounded as the activation's own backward would store it."""
    if ACTIVATION == RELU:
        g = tl.where(t > 0.0, g, 0.0)
    if ACTIVATION == LEAKY:
        g = tl.where(t > 0.0, g, (g * slope).to(STORED).to(tl.float32))
    return g


@triton.jit
def find_gradient(dt, normalised, scale, first, second, count, HAS_SUMS: tl.constexpr):
    """``dz`` of a tile; ``first`` and ``second`` are the two sums of the whole mini-batch."""
    if HAS_SUMS:
        divisor = tl.maximum(count, 1.0)
        first, second = tl.div_rn(first, divisor), tl.div_rn(second, divisor)
        dt = dt - first[None, :, None] - normalised * second[None, :, None]
    return dt * scale[None, :, None]
