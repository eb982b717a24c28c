"""What this machine can do at most, measured: multiply-adds a second, and memory traffic. Times are held against these.

Both take the best of several short bursts, for a neighbour on the processor makes a burst slower and never faster.
"""

from __future__ import annotations

import os
from pathlib import Path

from wholebatch.kernels.native import native_module

MEBI = 1 << 20
# Each of the triad's three arrays: several times the last-level cache, between these bounds, and at most an eighth of
# the memory that is free.
SMALLEST, LARGEST = 64 * MEBI, 256 * MEBI


def fma_peak(threads: int, *, bursts: int = 20, seconds: float = 0.005) -> float:
    """float32 operations per second (two for each multiply-add) that ``threads`` threads reach together at most.

    Independent chains of vector multiply-adds in registers, in the instruction set in use
    (:func:`wholebatch.kernels.instruction_set`; the portable one has no fused multiply-add: a product and a sum).

    Args:
        threads: example-threads, at most the cores that this process may run on.
        bursts, seconds: the best of so many bursts of about so many seconds each.

    Raises:
        ValueError: fewer than one thread or burst, more threads than cores, or no compiled part.
    """
    _check(threads)
    _check_positive("bursts", bursts)
    _check_positive("seconds", seconds)
    peak: float = native_module().fma_peak(threads, bursts, seconds)
    return peak


def memory_bandwidth(threads: int, *, sweeps: int = 10, array_bytes: int | None = None) -> float:
    """Bytes per second that ``threads`` threads move between processor and memory, by the triad ``a = b + s * c``.

    Twelve bytes are counted for an element: two reads and a write of float32. What the processor reads of ``a`` before
    it writes it (write-allocate) is not counted, as in McCalpin's STREAM (1995).

    Args:
        threads: threads, at most the cores that this process may run on.
        sweeps: the best of so many.
        array_bytes: bytes of each of the three arrays; None takes four times the last-level cache, within 64 to 256
            MiB and an eighth of the free memory.

    Raises:
        ValueError: fewer than one thread or sweep, more threads than cores, arrays too small, or no compiled part.
    """
    _check(threads)
    _check_positive("sweeps", sweeps)
    count = (_array_bytes() if array_bytes is None else array_bytes) // 4
    if count < threads:
        raise ValueError(f"array_bytes is {array_bytes}; it must be at least {4 * threads}, a float32 for each thread")
    bandwidth: float = native_module().memory_bandwidth(threads, sweeps, count)
    return bandwidth


def _check(threads: int) -> None:
    _check_positive("threads", threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > cores:
        raise ValueError(f"threads is {threads}, and this process may run on {cores} cores; ask for at most {cores}")


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, float) and not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{name} is {value!r}; it must be at least 1")


def _array_bytes() -> int:
    """As large as the triad's arrays have to be for the caches not to hold them."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
    return max(MEBI, min(LARGEST, free, max(SMALLEST, 4 * _last_level_cache())))


def _last_level_cache() -> int:
    """Bytes of the largest cache that the system tells of, 0 where it tells of none."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdecimal() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes)
