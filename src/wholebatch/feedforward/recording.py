"""The native engine, telling what each of its threads did and when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from wholebatch.feedforward.data import Data
from wholebatch.feedforward.native import NativeEngine

MOST_FACTOR = 100
"""Beyond it a step is nothing but idling, and Ctrl-C is answered late."""


class Doing(IntEnum):
    """What a thread did until a mark; the four last ones are ways of being at a meeting (native/timeline.h).

    EXCHANGE: told other ranks something, and merged what they told; RANKS: waited for them.
    """

    BEGIN = 0
    COMPUTE = 1
    MERGE = 2
    INJECTED = 3
    EXCHANGE = 4
    RANKS = 5
    SPINNING = 6
    YIELDING = 7
    PARKED = 8
    WAKING = 9


class Stage(IntEnum):
    """What it belongs to (native/timeline.h)."""

    FORWARD = 0
    ROWS = 1
    LOSS = 2
    BACKWARD = 3
    GRADIENT = 4
    NORM = 5
    CLIP = 6
    UPDATE = 7
    EXCHANGE = 8


@dataclass(frozen=True)
class Delay:
    """``thread``, from 0, is made to compute ``factor`` times as long: it is idle after each of its computations."""

    thread: int
    factor: float

    def check(self, threads: int) -> None:
        """Raise ValueError where there are not so many threads, or the factor is not in 1..100."""
        if not 0 <= self.thread < threads:
            there = f"there are threads 0 to {threads - 1}" if threads > 1 else "there is only thread 0"
            raise ValueError(f"thread {self.thread} is to be slow, but {there}; ask for more threads, or name another")
        if not 1 <= self.factor <= MOST_FACTOR:
            raise ValueError(f"a thread is to compute {self.factor:g} times as long; choose from 1 to {MOST_FACTOR}")


@dataclass(frozen=True)
class Marks:
    """Where each of a thread's stretches of time ended. All arrays are ``(marks,)`` int64; the first mark begins.

    Attributes:
        nanoseconds: since the run began, on one clock for all threads.
        step: from 0, within the run.
        layer: from 0; -1 for what belongs to no layer.
        doing: :class:`Doing`.
        stage: :class:`Stage`.
    """

    nanoseconds: np.ndarray
    step: np.ndarray
    layer: np.ndarray
    doing: np.ndarray
    stage: np.ndarray


class RecordingEngine(NativeEngine):
    """A :class:`NativeEngine` that can run any steps and tell how long they took, and what each thread did."""

    def run_steps(
        self,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        learning_rates: np.ndarray,
        *,
        record: bool = False,
        delay: Delay | None = None,
        counts: np.ndarray | None = None,
    ) -> tuple[float, list[Marks]]:
        """Train for these steps; returns the seconds they took, and with ``record`` each thread's marks.

        ``counts`` as for ``train_epoch``. Neither ``record`` nor ``delay`` (which needs ``record``) changes any number.

        Raises:
            ValueError: a delay without recording, of a thread that is not there, or by a factor outside 1..100; a loss
                that is not finite.
        """
        rows = int(np.diff(offsets).max())
        network, threads = self._network(rows), self.plan(rows)[0]
        if delay is not None:
            if not record:
                raise ValueError("a delay is injected where marks are made: pass record=True")
            delay.check(threads)
        self._load(network)
        rates = np.ascontiguousarray(learning_rates, dtype=np.float64)
        steps = len(offsets) - 1
        network.record(steps if record else 0, -1 if delay is None else delay.thread, delay.factor if delay else 1.0)
        try:
            self._run(network, data, order, offsets, rates, counts, track=True, progress=None)
            marks = [self._read(network, thread) for thread in range(threads)] if record else []
        finally:
            network.record(0, -1, 1.0)
        self._store(network)
        self.step += steps
        return network.lasted(), marks

    def plan(self, rows: int) -> tuple[int, bool]:
        """How many threads share mini-batches of so many rows, and whether by neuron (columns of the layers)."""
        return self._plan(rows)

    @staticmethod
    def _read(network: Any, thread: int) -> Marks:
        out = np.empty((network.marks(thread), 5), dtype=np.int64)
        network.read_marks(thread, out)
        return Marks(*(np.ascontiguousarray(column) for column in out.T))
