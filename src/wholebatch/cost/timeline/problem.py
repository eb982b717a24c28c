"""What is trained while the threads are watched: a net, rows, and mini-batches of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wholebatch import runs
from wholebatch.cost.timeline.record import Settings
from wholebatch.feedforward import FeedForward
from wholebatch.feedforward.data import Data, batch_offsets, prepare, shuffled
from wholebatch.feedforward.engines import check_fit
from wholebatch.feedforward.footprint import net_bytes
from wholebatch.feedforward.recording import Delay, RecordingEngine
from wholebatch.feedforward.settings import Architecture, Loss
from wholebatch.feedforward.threads import usable_cores
from wholebatch.runs.prepared import prepare as prepare_table
from wholebatch.tables import read_table
from wholebatch.tables.bundled import BUNDLED

RANDOM = "random"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
OVERHEAD_SECONDS = 4.0
MINI_BATCHES = 16
"""Of random rows: they are not all in the cache of small nets, as those of a table would not be."""


@dataclass(frozen=True)
class Wanted:
    """What a person asks of a timeline.

    Args:
        run: the table (or ``random``), its target, the net and its training, as a training run has them. Epochs,
            schedule and rows held out do not matter here.
        features, classes: of random rows.
        steps: to record, after those that warm up.
        dtype: ``float32`` or ``float64``.
        delay: a thread to be made slow.
        shown: the step to show: the one of median duration, or the slowest.
        overhead_seconds: how long to measure what recording costs, at most (but at least a few rounds).
    """

    run: runs.Settings
    features: int = 64
    classes: int = 10
    steps: int = 200
    dtype: Literal["float32", "float64"] = "float32"
    delay: Delay | None = None
    shown: Literal["median", "slowest"] = "median"
    overhead_seconds: float = field(default_factory=lambda: OVERHEAD_SECONDS)

    def __post_init__(self) -> None:
        for name in ("features", "classes", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Problem:
    """Ready to be trained; :meth:`batches` gives any number of steps."""

    data: Data
    architecture: Architecture
    loss: Loss
    engine: RecordingEngine
    batch_size: int
    settings: Settings

    def batches(self, steps: int, first_epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """``(order, offsets)`` of so many whole mini-batches: epochs in a row, without what is left at their ends."""
        each = len(self.data) // self.batch_size * self.batch_size

        def orders() -> Iterator[np.ndarray]:
            taken = 0
            for epoch in range(first_epoch, first_epoch + steps):
                if taken >= steps * self.batch_size:
                    return
                taken += each
                yield shuffled(len(self.data), self.settings.seed, epoch)[:each]

        return np.concatenate(list(orders())), np.arange(steps + 1, dtype=np.int64) * self.batch_size


def make(wanted: Wanted) -> Problem:
    """The problem.

    Raises:
        ValueError: whatever is wrong with the table (TableError) or a setting, a delay of a thread that is not there, a
            net that does not fit in memory, a machine without the compiled engine.
    """
    run, dtype = wanted.run, DTYPES[wanted.dtype]
    optimizer = run.make_optimizer()
    run.architecture(1, 1)
    x, y, weight, outputs, loss = _random(wanted) if run.table == RANDOM else _table(run)
    architecture = run.architecture(x.shape[1], outputs)
    rows = int(np.diff(batch_offsets(len(x), min(run.batch_size, len(x)), architecture))[0])
    check_fit(
        architecture, optimizer, rows, dtype, n_threads=run.threads, engine="native", net=net_bytes(architecture, dtype)
    )
    data = prepare(x, y, weight, architecture, loss, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        net = FeedForward.of(architecture, dtype=dtype)
    engine = RecordingEngine(net, loss, optimizer, seed=run.seed, n_threads=run.threads, split=run.split)
    threads, by_neuron = engine.plan(rows)
    engine.n_threads = threads  # also where other processes keep the cores busy
    if wanted.delay is not None:
        wanted.delay.check(threads)
    settings = Settings(
        source=run.table if run.table in (RANDOM, *BUNDLED) else Path(run.table).name,
        rows=len(data),
        sizes=list(architecture.sizes),
        parameters=sum(p.numel() for p in net.parameters()),
        norm=architecture.norm,
        norm_position=architecture.norm_position,
        activation=architecture.activation,
        loss=loss.kind,
        optimizer=optimizer.kind,
        clip=run.clip,
        batch_size=rows,
        threads=threads,
        cores=usable_cores(),
        split="neuron" if by_neuron else "example",
        dtype=wanted.dtype,
        seed=run.seed,
    )
    return Problem(data, architecture, loss, engine, rows, settings)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None, int, Loss]


def _random(wanted: Wanted) -> Rows:
    """Normal numbers, and classes that have nothing to do with them."""
    run, rows = wanted.run, wanted.run.batch_size * MINI_BATCHES
    random = np.random.default_rng(run.seed)
    x = random.standard_normal((rows, wanted.features), dtype=np.float32)
    y = random.integers(0, wanted.classes, rows)
    return x, y, None, wanted.classes, run.make_loss("classification", None)


def _table(run: runs.Settings) -> Rows:
    prepared = prepare_table(read_table(run.table), run.model_copy(update={"validation_fraction": 0.0}))
    part = prepared.training
    return part.x, part.y, part.weight, prepared.target.out_features, run.make_loss(prepared.target.task, None)
