"""What the systems whose threads are ranks share: joining the process group, and steps that all take together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

# A rank that waits longer for the others is in trouble: torch.compile takes tens of seconds, a step less than one.
TIMEOUT = timedelta(seconds=300)


def join() -> str:
    """torch's version; the process group is there from then on."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{os.environ['RANKS_FILE']}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=TIMEOUT,
    )
    return torch.__version__


class Together:
    """``prepare(steps)()`` once all ranks are there; it tells every rank the seconds of the slowest.

    So all ranks find the same number of steps for a burst, and choose the same of several variants.

    Args:
        prepare: what is not timed; it gives what is.
    """

    note = ""

    def __init__(self, prepare: Callable[[int], Callable[[], None]]) -> None:
        self.prepare = prepare

    def run(self, steps: int) -> float:
        take = self.prepare(steps)
        dist.barrier()
        start = time.perf_counter()
        take()
        return most(time.perf_counter() - start)


def repeated(step: Callable[[], None]) -> Together:
    """``step()`` again and again."""

    def take(steps: int) -> None:
        for _ in range(steps):
            step()

    return Together(lambda steps: partial(take, steps))


def most(value: float) -> float:
    """The largest of the ranks' values."""
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def of_each(values: list[float]) -> list[list[float]]:
    """Every rank's values, which are as many on each, in rank order."""
    own = torch.tensor(values, dtype=torch.float64)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return [row.tolist() for row in found]
