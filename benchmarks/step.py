"""``python -m benchmarks step``: one training step, ours and the peers', interleaved in one run."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import click
from rich.console import Console

from benchmarks import rounds, tables
from benchmarks.crew import Crew
from benchmarks.options import Names, Threads, default_threads
from benchmarks.problem import Problem
from benchmarks.rounds import Contender, Timings
from benchmarks.shapes import SHAPES, Shape
from benchmarks.systems import PEERS, SYSTEMS

NORMS = ("batch", "layer", "none")


@click.command()
@click.option("--shapes", type=Names("shape", tuple(SHAPES)), default=",".join(SHAPES), show_default=True)
@click.option("--threads", type=Threads(), default=default_threads, help="Threads for every system.  [default: 1,2]")
@click.option(
    "--peers",
    type=Names("peer", PEERS, may_be_none=True),
    default=",".join(PEERS),
    show_default=True,
    help="'none' measures wholebatch alone.",
)
@click.option("--norms", type=Names("norm", NORMS), default=",".join(NORMS), show_default=True)
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default="sgd", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Rounds of a burst of each.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows to this file.")
def step(
    shapes: tuple[str, ...],
    threads: tuple[int, ...],
    peers: tuple[str, ...],
    norms: tuple[str, ...],
    optimizer: str,
    repeats: int,
    json_path: Path | None,
) -> None:
    """Time one training step: forward, loss, backward, optimizer; float32, cross-entropy, ReLU.

    Every system runs in processes of its own, one for each number of threads, on the same cores, one after the other
    in a new order every round. wholebatch takes shuffled rows out of a table, as fit does; the peers get mini-batches
    that lie ready.
    """
    console, errors = Console(), Console(stderr=True)
    systems = [name for name in SYSTEMS if name == "wholebatch" or name in peers]
    found: dict[str, Timings] = {}

    def say(sentence: str) -> None:
        errors.print(f"note: {sentence}", highlight=False, markup=False, soft_wrap=True)

    with Crew() as crew:
        versions = rounds.load(crew, systems, threads, say)
        for shape in (SHAPES[name] for name in shapes):
            chosen = _choose_threads(shape, max(threads)) if "wholebatch" in versions else None
            if chosen is not None and chosen not in threads:
                rounds.load(crew, ["wholebatch"], [chosen], say)
            counts = {"wholebatch": sorted({*threads, chosen or threads[0]})}
            problems = {
                Contender(system, norm, count): Problem(shape.batch, shape.sizes, norm, optimizer, count)
                for system in versions
                for norm, count in product(norms, counts.get(system, threads))
                if system != "sklearn" or norm == "none"
            }
            found[shape.name] = rounds.measure(crew, problems, repeats, say)
            console.print(tables.of_shape(shape, found[shape.name]))
    if json_path is not None:
        tables.write_rows(json_path, found)


def _choose_threads(shape: Shape, most: int) -> int:
    """The number of threads that the engine chooses by itself on a machine of ``most`` cores."""
    from wholebatch.feedforward.native import choose_threads
    from wholebatch.feedforward.settings import Architecture

    architecture = Architecture(shape.sizes[0], shape.sizes[1:-1], shape.sizes[-1])
    return min(most, choose_threads(architecture, shape.batch))
