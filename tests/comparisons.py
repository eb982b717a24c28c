"""Made-up curves and rounds, a small problem, and a record of them."""

from __future__ import annotations

import numpy as np
import torch

from wholebatch.cost.comparison import claim
from wholebatch.cost.comparison.console import tell
from wholebatch.cost.comparison.contenders import Entry
from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.reaching import reach
from wholebatch.cost.comparison.record import Comparison, Contender, EngineName, NormName, Run, Target
from wholebatch.cost.timing import summarise
from wholebatch.feedforward.data import Data, batch_offsets
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer

BATCH = Entry("batch", "wholebatch", 1, "reference")


def make_run(*scores: float, norm: NormName = "batch", engine: EngineName = "wholebatch", seed: int = 0) -> Run:
    """Scored every 10 steps, which take 0.5 s."""
    count = len(scores)
    steps, seconds = [10 * i for i in range(count)], [0.5 * i for i in range(count)]
    return Run(norm=norm, engine=engine, seed=seed, steps=steps, seconds=seconds, scores=list(scores))


def make_problem(dtype: torch.dtype = torch.float64, kind: str = "cross_entropy", rows: int = 83) -> Problem:
    """Rows that a net can learn, in mini-batches of 16 and a last one of 3."""
    rng = np.random.default_rng(3)
    numbers = np.float64 if dtype == torch.float64 else np.float32
    x = rng.standard_normal((rows + 40, 6)).astype(numbers)
    z = x @ rng.standard_normal((6, 3)).astype(numbers)
    y = z.argmax(1) if kind == "cross_entropy" else z if kind == "mse" else (z > 0).astype(numbers)
    plain = Architecture(6, (9, 8), 3, "none")
    parts = (Data(np.ascontiguousarray(x[s]), np.ascontiguousarray(y[s])) for s in (slice(rows), slice(rows, None)))
    offsets = batch_offsets(rows, 16, plain)
    return Problem(*parts, Loss(kind), plain, Optimizer("adamw", weight_decay=0.01), offsets, dtype)  # type: ignore[arg-type]


def nothing(_: float) -> None:
    """In place of progress."""


def make_contender(norm: NormName, engine: EngineName = "wholebatch", seconds: float = 1e-3) -> Contender:
    timing = summarise([seconds, 1.1 * seconds, 0.9 * seconds], 10)
    return Contender(norm=norm, engine=engine, threads=2, how="fused", parameters=7, learning_rate=0.003, timing=timing)


def make_record(seeds: int = 3, target: float | None = 0.8, **more: object) -> Comparison:
    """Batch norm gets to 0.8, none does not, in one seed of several layer norm does."""
    made = [make_contender("batch", seconds=1.5e-3), make_contender("layer"), make_contender("none")]
    found = [
        reach(run, target)
        for seed in range(seeds)
        for run in (
            make_run(0.1, 0.7, 0.85, seed=seed),
            make_run(0.1, 0.2, 0.81 if seed == 0 else 0.3, norm="layer", seed=seed),
            make_run(0.1, 0.2, 0.3, norm="none", seed=seed),
        )
    ]
    values = {
        "table": "<b>t</b>.csv",
        "target_columns": ["<i>y</i>"],
        "task": "classification",
        "score_name": "accuracy",
        "training_rows": 100,
        "validation_rows": 40,
        "sizes": [6, 9, 3],
        "activation": "relu",
        "optimizer": "adamw",
        "batch_size": 10,
        "epochs": 2,
        "steps_per_epoch": 10,
        "evaluated_every": 10,
        "seeds": list(range(seeds)),
        "most_threads": 2,
        "target": Target(score=target, given=target is not None, norm=None, constant=0.1),
        "contenders": made,
        "runs": found,
        "trials": [],
        "trials_engine": None,
        "claims": claim.check(made),
        "notes": [],
    }
    return Comparison.model_validate(values | more)


def printed(record: Comparison) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, markup=False, highlight=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for renderable in tell(record):
            console.print(renderable)
        return console.export_text()
