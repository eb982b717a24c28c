"""How a tensor is cut into tiles: a function of its shape and dtype alone, so that sums have one order.

Nothing is tuned by timing, and nothing depends on how many multiprocessors a card has: the same shape gives the same
bits on every run (and, as far as the compiler divides a tile among threads alike, on every card).

A tensor is seen as ``(n, c, length)`` in memory: ``(N, C)`` and channels last have ``length = 1``, every position a
row; contiguous ``(N, C, *)`` is itself. A tile is ``(rows, channels, run)`` of it, each a power of two.

*Whole*: a tile holds all elements of its channels. One launch, one read of the input: it stays in registers between its
moments and the normalisation. *Split*: three launches. First ``programs`` programs for each tile of channels
gather partial results, each from every ``programs``-th tile; then these are merged in their order; then each tile
is finished, beginning where the first launch ended, for that is what the second-level cache still holds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import gcd

GRID = 65535  # programs in the second dimension of a grid, at most


@dataclass(frozen=True)
class Limits:
    """What bounds the tiles.

    Attributes:
        whole: elements of a tile that holds all of its channels: 32 for each of 512 threads.
        tile: elements of a tile in a split: 16 for each of 256 threads. Compiled for sm_90 that takes 43 to 80
            registers, so that three or more programs share a multiprocessor, with 24 KiB or more under way.
        programs: that gather partial results, about: two to four for each multiprocessor of a card with 108 to 144.
    """

    whole: int = 16384
    tile: int = 4096
    programs: int = 512


LIMITS = Limits()


@dataclass(frozen=True)
class Plan:
    """The tiles of one tensor ``(n, c, length)``.

    Attributes:
        n, c, length: the extents.
        rows, channels, run: of a tile.
        whole: one launch does it.
        programs: that gather partial results for a tile of channels.
        warps: of a program.
        wide: offsets need 64 bits.
    """

    n: int
    c: int
    length: int
    rows: int
    channels: int
    run: int
    whole: bool
    programs: int
    warps: int
    wide: bool

    @property
    def tiles(self) -> int:
        """How many tiles its channels are cut into."""
        return cdiv(self.c, self.channels)

    @property
    def steps(self) -> int:
        """How many tiles cover ``(n, length)``."""
        return cdiv(self.n, self.rows) * cdiv(self.length, self.run)

    @property
    def merging(self) -> tuple[int, int]:
        """See :func:`merging_tile`."""
        return merging_tile(self.programs, self.c)

    @property
    def units(self) -> tuple[int, int, int, int]:
        """``(c / a, a, length / b, b)`` with ``a`` and ``b`` dividing 16: alignments, for the compiler."""
        a, b = gcd(self.c, 16), gcd(self.length, 16)
        return self.c // a, a, self.length // b, b


@functools.lru_cache(maxsize=4096)
def make_plan(n: int, c: int, length: int, itemsize: int, inputs: int, limits: Limits = LIMITS) -> Plan:
    """The plan for a tensor with elements.

    Args:
        n, c, length: its extents in memory, all at least 1.
        itemsize: bytes of an element.
        inputs: tensors of which a program holds a tile at once.
        limits: of the tiles.
    """
    wide = n * c * length >= 1 << 31
    rows, run = power(n), power(length)
    for least in (64, 32):  # bytes that lie together: two sectors of memory, at least one
        channels = min(power(c), max(1, floor_power(least // (itemsize * length))))
        if rows * channels * run * inputs <= limits.whole:
            size = rows * channels * run
            return Plan(n, c, length, rows, channels, run, True, 1, min(16, max(1, inputs * size // 512)), wide)
    elements = max(1, limits.tile // inputs)
    if length == 1:
        channels, run = min(power(c), elements, 256 // itemsize), 1
    else:
        run = min(_run_of(length), elements)
        channels = min(power(c), max(1, min(32, elements) // run))
    while cdiv(c, channels) > GRID:  # so many channels that shorter runs do no harm
        channels, run = 2 * channels, max(1, run // 2)
    rows = max(1, min(power(n), elements // (channels * run)))
    if length > 1:  # few examples: longer runs instead
        while rows * channels * run * 2 <= elements and run < power(length):
            run *= 2
    steps, tiles = cdiv(n, rows) * cdiv(length, run), cdiv(c, channels)
    rounds = cdiv(steps, min(steps, cdiv(limits.programs, tiles)))
    warps = min(8, max(1, inputs * rows * channels * run // 512))
    return Plan(n, c, length, rows, channels, run, False, cdiv(steps, rounds), warps, wide)


def _run_of(length: int) -> int:
    """The longest run that leaves less than a tenth of the lanes idle, or else the one that leaves the fewest."""
    runs = [1 << i for i in range(10, 4, -1) if 1 << i <= max(32, power(length))]
    idle = {run: cdiv(length, run) * run - length for run in runs}
    return next((run for run in runs if idle[run] * 10 < length), min(runs, key=lambda run: idle[run]))


def merging_tile(parts: int, channels: int) -> tuple[int, int]:
    """``(programs, channels)`` of the tile that merges partial results: all of a channel's at once."""
    programs = power(parts)
    return programs, min(power(channels), max(1, 4096 // programs))


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def power(x: int) -> int:
    """The least power of two that is not below ``x``."""
    return 1 << (x - 1).bit_length()


def floor_power(x: int) -> int:
    """The largest power of two that is not above ``x``; 0 for 0."""
    return 1 << (x.bit_length() - 1) if x else 0
