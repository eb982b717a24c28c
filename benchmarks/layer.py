"""``python -m benchmarks layer``: one layer of batch norm and ReLU, ours and the peers', interleaved in one run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click

from benchmarks import layer_tables, machine, rounds, tables
from benchmarks.crew import Crew
from benchmarks.layer_cases import DTYPES, NORMS, SHAPES, Case
from benchmarks.limits import Limits
from benchmarks.options import Cores, Names, OutFile, Threads, choose_places, default_threads
from benchmarks.sheet import Sheet
from benchmarks.systems import LAYER_PEERS, LAYER_SYSTEMS
from benchmarks.talk import Talk
from wholebatch import files


@click.command()
@click.option("--shapes", type=Names("shape", tuple(SHAPES)), default=",".join(SHAPES), show_default=True)
@click.option("--dtypes", type=Names("dtype", tuple(DTYPES)), default=",".join(DTYPES), show_default=True)
@click.option("--norms", type=Names("norm", NORMS), default=",".join(NORMS), show_default=True)
@click.option("--threads", type=Threads(), default=default_threads, show_default="1,2", help="For every system.")
@click.option("--cores", type=Cores(), help="Cores to stand on, say 0,2; the first n of them with n threads.")
@click.option(
    "--peers",
    type=Names("peer", LAYER_PEERS, may_be_none=True),
    default=",".join(LAYER_PEERS),
    show_default=True,
    help="'none' measures wholebatch and the floor alone.",
)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Rounds of a burst of each.")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write all tables to this file.")
def layer(
    shapes: tuple[str, ...],
    dtypes: tuple[str, ...],
    norms: tuple[str, ...],
    threads: tuple[int, ...],
    cores: tuple[int, ...] | None,
    peers: tuple[str, ...],
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time one layer in training, forward and backward: batch norm, with ReLU, and with addition and ReLU.

    Every system runs in processes of its own, one for each number of threads, on the same cores, one after the other
    in a new order every round. 'torch' is torch eager as a person gets it, 'tuned' the same under an allocator that
    keeps its memory; 'compile' is torch.compile under that allocator, 'compile-default' without. Ours is measured under
    both, and so is the floor: as many plain sweeps over the tensors as a layer needs at least.
    """
    places = choose_places(threads, cores)
    systems = [name for name in LAYER_SYSTEMS if name in peers or name not in LAYER_PEERS]
    limits = Limits()
    sheets: list[Sheet] = []
    found: list[dict[str, Any]] = []
    with Talk() as talk, Crew(places, LAYER_SYSTEMS) as crew:
        versions = rounds.load(crew, systems, threads, talk)
        header = [*machine.describe(places, _shown(versions)), f"{repeats} rounds"]
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        for case in _cases(shapes, dtypes, norms):
            problems = {
                layer_tables.contender_of(one, system): one
                for one in (replace(case, threads=count) for count in threads)
                for system in versions
            }
            limits.forget_peak()
            limits.measure_bandwidth(crew, threads, talk)  # of this minute, on a machine whose neighbours change
            between = partial(limits.measure_peak, crew, threads, talk)
            timings = rounds.measure(crew, problems, repeats, talk, between, least_steps={})
            timings.divide(case.layers)
            limits.tell_crowding(str(case), talk)
            found += layer_tables.rows(case, timings)
            for sheet in (
                layer_tables.times(case, timings, limits),
                tables.ratios(str(case), layer_tables.ratios(case, timings, limits)),
            ):
                sheets.append(sheet)
                talk.out.print(sheet.to_rich())
    talk.out.print(layer_tables.LEGEND, highlight=False, markup=False)
    if json_path is not None:
        files.write_json(json_path, found)
    if markdown is not None:
        parts = ["\n".join(f"- {line}" for line in [*header, *talk.notes]), *(s.to_markdown() for s in sheets)]
        files.write(markdown, "\n\n".join([*parts, layer_tables.LEGEND]) + "\n")


def _cases(shapes: tuple[str, ...], dtypes: tuple[str, ...], norms: tuple[str, ...]) -> list[Case]:
    """The smallest tensors first: freeing a large one teaches the default allocator to keep smaller ones."""
    cases = [Case(name, dtype, norm, 1) for name, dtype, norm in product(shapes, dtypes, norms)]
    return sorted(cases, key=lambda case: case.tensor_bytes)


def _shown(versions: dict[str, str]) -> dict[str, str]:
    """Each library once."""
    return {name: value for name, value in versions.items() if name in ("wholebatch", "torch", "compile")}
