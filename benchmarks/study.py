"""``python -m benchmarks study``: what exact micro-batches are worth in training, at a fixed budget of memory."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from benchmarks import machine, study_figures, study_runs, study_tables
from benchmarks.cores import usable
from benchmarks.options import Listed, Names
from benchmarks.study_cases import BATCH, BUDGET, WAYS, Net
from benchmarks.study_runs import Plan
from benchmarks.talk import Talk
from wholebatch import files
from wholebatch.microbatches.offload import Offload

NETS = get_args(Net)
RESULTS, TABLE, PAGE = "runs.json", "study.md", "study.html"
# (seeds, epochs, learning rates)
FULL, QUICK = (5, 20, (0.02, 0.05, 0.1, 0.2)), (3, 10, (0.05, 0.2))

LEGEND = f"""\
Every way makes the same steps of {BATCH} examples from the same weights, in the same order for the same seed. The
memory holds {BUDGET} examples at once; 'undivided' holds all and is the reference. The learning rate is each way's
own best by the mean validation accuracy at the end; test rows choose nothing. 'against undivided': points of test
accuracy, mean and standard deviation of the differences seed by seed."""


class Rates(Listed[float]):
    """``0.05,0.2``: learning rates."""

    name = "rates"

    def read(self, parts: list[str]) -> tuple[float, ...]:
        rates = {float(part) for part in parts}
        if not all(0 < rate < float("inf") for rate in rates):
            raise ValueError("a learning rate must be positive and finite, say 0.05")
        return tuple(sorted(rates))


@click.command()
@click.option("--nets", type=Names("net", NETS), default=",".join(NETS), show_default=True)
@click.option("--ways", type=Names("way", tuple(WAYS)), default=",".join(WAYS), show_default=True)
@click.option("--quick", is_flag=True, help=f"{QUICK[0]} seeds, {QUICK[1]} epochs and 2 learning rates unless given.")
@click.option("--seeds", type=click.IntRange(1), help=f"Runs of each.  [default: {FULL[0]}]")
@click.option("--epochs", type=click.IntRange(1), help=f"Of each run.  [default: {FULL[1]}]")
@click.option("--rates", type=Rates(), help=f"Learning rates to choose from.  [default: {','.join(map(str, FULL[2]))}]")
@click.option("--offload", type=click.Choice(get_args(Offload)), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1, len(usable())), default=1, show_default=True)
@click.option("--redraw", is_flag=True, help="Train nothing: tables and figures of all runs that the folder has.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="study", show_default=True, help="Folder."
)
def study(
    nets: tuple[Net, ...],
    ways: tuple[str, ...],
    quick: bool,
    seeds: int | None,
    epochs: int | None,
    rates: tuple[float, ...] | None,
    offload: Offload,
    threads: int,
    redraw: bool,
    out: Path,
) -> None:
    """Train small nets in micro-batches, plain and in lockstep, beside the undivided batch and group norm.

    Every run is added to runs.json in the folder as soon as it is trained; the same command goes on where it was
    stopped. Tables are made of that file alone, and so are the figures: one SVG for each net where plotly can export
    it (kaleido and a Chrome or Chromium), and a page with all of them.
    """
    usual = QUICK if quick else FULL
    plan = Plan(nets, ways, rates or usual[2], seeds or usual[0], epochs or usual[1], offload, threads)
    out.mkdir(parents=True, exist_ok=True)
    with Talk() as talk:
        if redraw:
            runs = study_runs.load(out / RESULTS)
            runs = [run for run in runs if run["net"] in nets and run["way"] in ways]
        else:
            runs = study_runs.complete(plan, out / RESULTS, talk.progress)
        if not runs:
            raise click.ClickException(f"{out / RESULTS} has no runs of these nets and ways; run without --redraw")
        lines = [] if redraw else machine.describe(usable()[:threads], {"torch": _version()})
        lines += [describe(runs)]
        sheets = [study_tables.sheet_of(net, runs) for net in nets if any(run["net"] == net for run in runs)]
        for line in lines:
            talk.out.print(line, highlight=False, markup=False)
        for sheet in sheets:
            talk.out.print(sheet.to_rich())
        talk.out.print(LEGEND, highlight=False, markup=False)
        figures = {f"micro-batches-{net}": study_figures.draw(net, runs) for net in nets}
        study_figures.write_page(out / PAGE, list(figures.values()))
        talk.progress("exporting figures")
        why_not = study_figures.write_pictures(out, figures)
        if why_not:
            talk.note(f"no SVG was written, {PAGE} has the figures: {why_not}")
    text = ["\n".join(f"- {line}" for line in lines), *(sheet.to_markdown() for sheet in sheets), LEGEND]
    files.write(out / TABLE, "\n\n".join(text) + "\n")


def describe(runs: list[study_runs.Run]) -> str:
    """What was trained."""
    parts = []
    for name, key in (("seeds", "seed"), ("epochs", "epochs"), ("learning rates", "rate"), ("threads", "threads")):
        parts.append(f"{name} {', '.join(map(str, sorted({run[key] for run in runs})))}")
    modes = sorted({run["offload"] for run in runs if run["offload"]})
    return "; ".join([f"{len(runs)} runs", *parts, f"lockstep's offload {', '.join(modes) or '-'}"])


def _version() -> str:
    import torch

    return torch.__version__
