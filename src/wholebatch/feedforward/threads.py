"""How the native engine shares a mini-batch: over how many threads, and along which side of the matrices."""

from __future__ import annotations

import os
from itertools import pairwise

from wholebatch.feedforward.settings import Architecture, Split

# A thread has to have this many multiply-adds of a step to itself before it is worth meeting: a meeting costs about a
# microsecond, and 64 x 20-20-20-20-10 (0.3 M) is slower on two threads than on one, 64 x 784-100-100-100-10 (19 M)
# faster.
WORK_PER_THREAD = 2_000_000
# Rows of a worker's block: Blocks::most in native/blocks.h. Below so many for each thread there are too few blocks to
# share; the columns of the weights are shared instead.
BLOCK_ROWS = 128


def usable_cores(ranks: int = 1) -> int:
    """Cores that this process may run on: its share of them, where there are ``ranks`` on this host.

    torchrun says how many it has started here.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def choose_threads(architecture: Architecture, rows: int) -> int:
    """Threads for mini-batches of ``rows``: as many as there are cores, but none with too little to do."""
    sizes = architecture.sizes
    work = 3 * rows * sum(a * b for a, b in pairwise(sizes))
    return max(1, min(usable_cores(), work // WORK_PER_THREAD))


def choose_split(rows: int, threads: int) -> Split:
    """By example where every thread gets at least one block of rows, and on a single one; else by neuron.

    By neuron dL/dZ is formed both for the layer below and for the weights, as others read what it would be put in place
    of: 64 x 20-20-20-20-10 on one thread took 24.2 us so and 22.5 by example (medians, interleaved).
    """
    return "example" if threads == 1 or rows >= threads * BLOCK_ROWS else "neuron"
