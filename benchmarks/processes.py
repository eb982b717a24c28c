"""``python -m benchmarks processes``: one net trained by ranks of one host, against one process and torch's DDP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from benchmarks import machine, processes_tables, rounds, tables
from benchmarks.cores import usable
from benchmarks.limits import Limits
from benchmarks.options import Cores, Names, OutFile, Threads, choose_places
from benchmarks.problem import Problem, SpreadProblem
from benchmarks.processes_tables import AT_ONCE, DDP, ONE, RANKS, Spread
from benchmarks.ranks import RankCrew
from benchmarks.rounds import Contender, Timings
from benchmarks.shapes import SHAPES, Shape
from benchmarks.systems import SPREAD_SYSTEMS
from benchmarks.talk import Talk
from wholebatch import files

SYNCS = ("all", "group", "none", "late")
# An epoch of ours copies the parameters in and out, see rounds.LEAST_STEPS; so it does over ranks.
LEAST_STEPS = {ONE: 4, RANKS: 4, DDP: 2}


def default_ranks() -> str:
    """``1,2,4``, as far as there are cores."""
    return ",".join(str(count) for count in (1, 2, 4) if count <= len(usable()))


@click.command()
@click.option("--shapes", type=Names("shape", tuple(SHAPES)), default="C,D,E,F", show_default=True)
@click.option("--ranks", type=Threads(), default=default_ranks, show_default="1,2,4", help="Processes of one thread.")
@click.option(
    "--sync", type=Names("choice", SYNCS), default="all", show_default=True, help="Whose rows are normalised."
)
@click.option("--no-overlap", is_flag=True, help="Measure ranks that wait for each exchange at once, too.")
@click.option(
    "--peers", type=Names("peer", (DDP,), may_be_none=True), default=DDP, show_default=True, help="Or 'none'."
)
@click.option("--cores", type=Cores(), help="Cores to stand on, say 0,2; rank r on the r-th of them.")
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default="sgd", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Rounds of a burst of each.")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write the tables to this file.")
def processes(
    shapes: tuple[str, ...],
    ranks: tuple[int, ...],
    sync: tuple[str, ...],
    no_overlap: bool,
    peers: tuple[str, ...],
    cores: tuple[int, ...] | None,
    optimizer: str,
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time one training step of a mini-batch that ranks of this host share: float32, batch norm, cross-entropy, ReLU.

    Every rank has one thread, on a core of its own. The same mini-batch is trained by one process with as many threads
    on the same cores, and by torch's DistributedDataParallel with a batch norm over all ranks that is written by hand.
    All take turns, in a new order every round.
    """
    places = choose_places(ranks, cores)
    hows = [*sync, *([AT_ONCE] if no_overlap else [])]
    found, limits = Timings(), Limits()
    sheets = []
    with Talk() as talk:
        header: list[str] = []
        for count in ranks:  # by count: ranks that only wait for their turn take memory
            with RankCrew(places[:count], SPREAD_SYSTEMS) as crew:
                versions = rounds.load(crew, [ONE, RANKS, *peers], [count], talk)
                if not header:
                    header = [*machine.describe(places, versions), f"optimizer: {optimizer}; {repeats} rounds"]
                    for line in header:
                        talk.out.print(line, highlight=False, markup=False)
                for shape in (SHAPES[name] for name in shapes):
                    limits.forget_peak()
                    timings = rounds.measure(
                        crew,
                        problems_of(shape, count, versions, hows, optimizer),
                        repeats,
                        talk,
                        partial(limits.measure_peak, crew, sorted({1, count}), talk),
                        least_steps=LEAST_STEPS,
                        telling=SPREAD_SYSTEMS,
                    )
                    what = f"{shape.name}: {shape}, {count} {'rank' if count == 1 else 'ranks'}"
                    limits.tell_crowding(what, talk)
                    found.add(timings)
                    for sheet in (
                        processes_tables.times(what, timings),
                        tables.ratios(what, processes_tables.ratios(timings, shape.name, count)),
                    ):
                        sheets.append(sheet)
                        talk.out.print(sheet.to_rich())
    talk.out.print(processes_tables.LEGEND, highlight=False, markup=False)
    if json_path is not None:
        files.write_json(json_path, processes_tables.rows_of(found))
    if markdown is not None:
        parts = ["\n".join(f"- {line}" for line in [*header, *talk.notes]), *(s.to_markdown() for s in sheets)]
        files.write(markdown, "\n\n".join([*parts, processes_tables.LEGEND]) + "\n")


def problems_of(
    shape: Shape, ranks: int, systems: Mapping[str, str], hows: list[str], optimizer: str
) -> dict[Contender, Problem]:
    """What takes part with so many ranks; with one there is nobody to synchronise with, and nothing to overlap."""
    plain = (shape.batch, shape.sizes, "batch", optimizer, ranks)
    found: dict[Contender, Problem] = {}
    if ONE in systems:
        found[Spread(shape.name, ONE, "", ranks)] = Problem(*plain)
    if RANKS in systems:
        for how in hows if ranks > 1 else ["all"]:
            if how == "group" and ranks % 4:
                continue  # two groups of at least two ranks
            sync = "all" if how == AT_ONCE else how
            found[Spread(shape.name, RANKS, how, ranks)] = SpreadProblem(*plain, sync=sync, overlap=how != AT_ONCE)
    if DDP in systems:
        found[Spread(shape.name, DDP, "", ranks)] = SpreadProblem(*plain)
    return found
