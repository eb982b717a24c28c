"""A worker process: one system on its own cores, told by the parent over a pipe when to run.

``python -m benchmarks.worker MODULE CORE,CORE,…`` serves a module of benchmarks.systems (or, by any other name, only
measures the machine). It takes one JSON request a line on its standard input and answers each with one line. It stands
on its cores before anything is imported that makes threads. It ends when its input ends, hence also when the parent is
killed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks import cores
from benchmarks.systems import LeftOut, Trainer

Answer = dict[str, Any]

WARM_BURSTS = 3  # so many times the seconds of a burst, before each


class Desk:
    """Answers requests; the trainers that it built, by number."""

    def __init__(self, module: str) -> None:
        self.module = f"benchmarks.systems.{module}"
        self.trainers: dict[int, tuple[Trainer, int, float]] = {}

    def answer(self, request: dict[str, Any]) -> Answer:
        """What the request's ``do`` names."""
        do: Callable[..., Answer] = getattr(self, request.pop("do"))
        try:
            return do(**request)
        except ImportError as error:
            return {"left_out": f"it cannot be imported ({error}); pip install 'wholebatch[benchmarks]'"}
        except LeftOut as error:
            return {"left_out": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def load(self) -> Answer:
        """Import the system."""
        return {"version": import_module(self.module).load()}

    def build(self, number: int, problem: dict[str, Any], seconds: float, least: int) -> Answer:
        """Build and warm up a net; a burst of it has so many steps as take ``seconds``, but at least ``least``."""
        module = import_module(self.module)
        trainer: Trainer = module.make(module.Problem.of(problem))
        trainer.run(1)
        steps = least
        while (took := min(trainer.run(steps) for _ in range(2))) < seconds / 2:
            steps = min(8 * steps, round(steps * seconds / took))  # the first steps are slower: come closer by and by
        self.trainers[number] = trainer, steps, seconds
        return {"steps": steps, "note": trainer.note}

    def burst(self, number: int) -> Answer:
        """Seconds per step over one burst."""
        trainer, steps, seconds = self.trainers[number]
        # What the others left in the caches is not this system's cost, nor that its threads slept meanwhile: for tens
        # of milliseconds after that, systems put two of them on one core.
        warm = trainer.run(1)
        while warm < WARM_BURSTS * seconds:
            warm += trainer.run(max(1, steps // 4))
        return {"seconds": trainer.run(steps) / steps}

    def measure(self, number: int) -> Answer:
        """What a net tells of itself beside its times."""
        trainer: Any = self.trainers[number][0]
        return {"value": trainer.measure()}

    def peak(self, bursts: int) -> Answer:
        """The peak of multiply-adds on this worker's cores, operations per second."""
        from wholebatch.kernels import limits

        return {"value": limits.fma_peak(len(os.sched_getaffinity(0)), bursts=bursts)}

    def bandwidth(self) -> Answer:
        """Bytes per second that this worker's cores move."""
        from wholebatch.kernels import limits

        return {"value": limits.memory_bandwidth(len(os.sched_getaffinity(0)))}

    def drop(self) -> Answer:
        """Forget all nets."""
        self.trainers.clear()
        return {}


def main() -> None:
    """Answer until the input ends."""
    module, places = sys.argv[1:]
    answers = cores.begin_worker(map(int, places.split(",")))
    desk = Desk(module)
    for line in sys.stdin:
        answers.write(json.dumps(desk.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
