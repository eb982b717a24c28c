"""``python -m benchmarks step``: one training step, ours and the peers', interleaved in one run."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

import click

from benchmarks import machine, precision_steps, ratios, rounds, tables
from benchmarks.crew import Crew
from benchmarks.limits import Limits
from benchmarks.options import Cores, Names, OutFile, Threads, choose_places, default_threads
from benchmarks.problem import Problem
from benchmarks.rounds import Contender, Timings
from benchmarks.shapes import SHAPES, Shape
from benchmarks.sheet import Sheet
from benchmarks.systems import LOWER_PRECISIONS, PEERS, ROUNDED, SYSTEMS, USUAL_PEERS
from benchmarks.talk import Talk
from wholebatch import files


@click.command()
@click.option("--shapes", type=Names("shape", tuple(SHAPES)), default=",".join(SHAPES), show_default=True)
@click.option("--threads", type=Threads(), default=default_threads, show_default="1,2", help="For every system.")
@click.option("--cores", type=Cores(), help="Cores to stand on, say 0,2; the first n of them with n threads.")
@click.option(
    "--peers",
    type=Names("peer", PEERS, may_be_none=True),
    default=",".join(USUAL_PEERS),
    show_default=True,
    help="jax-scan too can be named; 'none' measures wholebatch alone.",
)
@click.option("--norms", type=Names("norm", tables.NORMS), default=",".join(tables.NORMS), show_default=True)
@click.option(
    "--precision",
    "precisions",
    type=Names("precision", ("highest", *LOWER_PRECISIONS)),
    default="highest",
    show_default=True,
    help="Of the products; 'highest' is measured always, the others of ours, torch and compile beside it.",
)
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default="sgd", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Rounds of a burst of each.")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write all tables to this file.")
def step(
    shapes: tuple[str, ...],
    threads: tuple[int, ...],
    cores: tuple[int, ...] | None,
    peers: tuple[str, ...],
    norms: tuple[str, ...],
    precisions: tuple[str, ...],
    optimizer: str,
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time one training step: forward, loss, backward, optimizer; float32, cross-entropy, ReLU.

    Every system runs in processes of its own, one for each number of threads, on the same cores, one after the other
    in a new order every round. wholebatch takes shuffled rows out of a table, as fit does; the peers get mini-batches
    that lie ready.

    'compile' is torch.compile, 'jax' one jitted step called for each mini-batch, 'jax-scan' a loop of steps under one
    jit. Each takes the fastest of the variants that this measurement knows.
    """
    places = choose_places(threads, cores)
    systems = [name for name in SYSTEMS if name == "wholebatch" or name in peers]
    systems += [name for name, (base, precision) in ROUNDED.items() if base in systems and precision in precisions]
    found, limits = Timings(), Limits()
    sheets: list[Sheet] = []
    with Talk() as talk, Crew(places, precision_steps.SYSTEMS) as crew:
        versions = rounds.load(crew, systems, threads, talk)
        limits.measure_bandwidth(crew, threads, talk)
        header = [
            *machine.describe(places, versions),
            limits.describe_bandwidth(),
            f"optimizer: {optimizer}; {repeats} rounds",
        ]
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        for shape in (SHAPES[name] for name in shapes):
            ours = [name for name in versions if name.startswith(ratios.OURS)]
            chosen = _choose_threads(shape, max(threads)) if ours else None
            counts = sorted({*threads, *([chosen] if chosen else [])})
            if chosen and chosen not in threads:
                rounds.load(crew, ours, [chosen], talk)
                limits.measure_bandwidth(crew, {chosen} - limits.bandwidth.keys(), talk)
            problems = {
                Contender(shape.name, system, norm, count): Problem(
                    shape.batch, shape.sizes, norm, optimizer, count, precision=precision_steps.of(system)
                )
                for system in versions
                for norm, count in product(norms, counts if system in ours else threads)
                if system != "sklearn" or norm == "none"  # it has no norms
            }
            limits.forget_peak()
            between = partial(limits.measure_peak, crew, counts, talk)
            timings = rounds.measure(crew, problems, repeats, talk, between, precision_steps.LEAST_STEPS)
            limits.tell_crowding(f"shape {shape.name}", talk)
            found.add(timings)
            highest = timings.without(ROUNDED)
            for sheet in (
                tables.times(shape, highest, limits, chosen),
                tables.ratios(shape.name, ratios.of_shape(shape, highest, chosen)),
                *([precision_steps.times(shape, timings)] if set(precisions) & {*LOWER_PRECISIONS} else []),
            ):
                sheets.append(sheet)
                talk.out.print(sheet.to_rich())
    talk.out.print(tables.LEGEND, highlight=False, markup=False)
    if json_path is not None:
        tables.write_rows(json_path, found)
    if markdown is not None:
        parts = ["\n".join(f"- {line}" for line in [*header, *talk.notes]), *(s.to_markdown() for s in sheets)]
        files.write(markdown, "\n\n".join([*parts, tables.LEGEND]) + "\n")


def _choose_threads(shape: Shape, most: int) -> int:
    """The number of threads that the engine chooses by itself on a machine of ``most`` cores."""
    from wholebatch.feedforward.settings import Architecture
    from wholebatch.feedforward.threads import choose_threads

    architecture = Architecture(shape.sizes[0], shape.sizes[1:-1], shape.sizes[-1])
    return min(most, choose_threads(architecture, shape.batch))
