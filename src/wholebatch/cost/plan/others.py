"""Who else wants the cores: threads of other processes that are ready to run."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

_SAMPLES = 25


def count_others(seconds: float = 0.5) -> float:
    """Threads of this host that are running or ready to run beside the caller, the mean of samples over ``seconds``.

    From /proc/loadavg, see proc(5); 0 where the system has none.
    """
    found = []
    for _ in range(_SAMPLES):
        try:
            running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
            found.append(max(int(running) - 1, 0))  # the caller itself runs while it reads
        except (OSError, IndexError, ValueError):
            return 0.0
        time.sleep(seconds / _SAMPLES)
    return float(np.mean(found))


def crowd(ranks: int, others: float, cores: int) -> float:
    """How many times longer a rank computes than one alone did, where all threads get equal shares of the cores.

    ::

        max(1, (ranks + others) / cores) / max(1, (1 + others) / cores)
    """
    return max(1.0, (ranks + others) / cores) / max(1.0, (1 + others) / cores)
