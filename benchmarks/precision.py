"""``python -m benchmarks precision``: what products of rounded operands cost in accuracy."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import get_args

import click
import torch

from benchmarks import machine, precision_tables
from benchmarks.cores import usable
from benchmarks.options import Names, OutFile
from benchmarks.precision_cases import CASES
from benchmarks.precision_runs import Run, Way, run_seed
from benchmarks.talk import Talk
from wholebatch import files

WAYS = get_args(Way)
LEGEND = """\
Every line of a table is trained from the same weights, over the same rows in the same order, seed by seed; a seed draws
weights, order and test rows. 'difference': to highest, whose products are of float32: mean of the differences seed by
seed ± its standard error, points of test accuracy (of a hundred) and of test loss. The line of float64 says how far
rounding alone takes two trainings apart. 'gradients': those of one mini-batch against float64, ||g - g64|| / ||g64||
over all parameters, the worst of the seeds: at the first weights, and at those that float32 ended with."""


@click.command()
@click.option("--cases", type=Names("case", tuple(CASES)), default=",".join(CASES), show_default=True)
@click.option("--ways", type=Names("way", WAYS), default=",".join(WAYS), show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Trainings of each.")
@click.option("--epochs", type=click.IntRange(1), help="Of each training.  [default: the case's own]")
@click.option("--engine", type=click.Choice(("auto", "native", "reference")), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, len(usable())), default=1, show_default=True)
@click.option("--json", "json_path", type=OutFile(), help="Write all trainings to this file.")
@click.option("--markdown", type=OutFile(), help="Write the tables to this file.")
def precision(
    cases: tuple[str, ...],
    ways: tuple[Way, ...],
    seeds: int,
    epochs: int | None,
    engine: str,
    threads: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Train at every precision of the products, and compare the scores and the gradients of a step."""
    torch.set_num_threads(threads)  # the reference's; idle ones of torch would stand in its way on a busy machine
    with Talk() as talk:
        header = machine.describe(
            usable()[:threads], {"torch": version("torch"), "scikit-learn": version("scikit-learn")}
        )
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        runs: list[Run] = []
        sheets = []
        for case in (CASES[name] for name in cases):
            for seed in range(seeds):
                talk.progress(f"{case.name}, seed {seed + 1} of {seeds}")
                runs += run_seed(case, ways, seed, epochs or case.epochs, engine, threads)
            sheets.append(precision_tables.sheet_of(case.name, runs))
            talk.out.print(sheets[-1].to_rich())
        talk.out.print(LEGEND, highlight=False, markup=False)
    if json_path is not None:
        files.write_json(json_path, runs)
    if markdown is not None:
        lines = "\n".join(f"- {line}" for line in header)
        files.write(markdown, "\n\n".join([lines, *(sheet.to_markdown() for sheet in sheets), LEGEND]) + "\n")
