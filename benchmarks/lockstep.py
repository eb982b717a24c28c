"""``python -m benchmarks lockstep``: time and memory of micro-batches that are exact together, and of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks import lockstep_cases, lockstep_tables, machine, rounds, tables
from benchmarks.crew import Crew, WorkerError
from benchmarks.limits import Limits
from benchmarks.lockstep_cases import MODES, PEERS, TORCH, UNDIVIDED, Case, Net
from benchmarks.options import Cores, Listed, Names, OutFile, Threads, choose_places
from benchmarks.rounds import Contender
from benchmarks.sheet import Sheet
from benchmarks.systems import LOCKSTEP_SYSTEMS
from benchmarks.talk import Talk
from wholebatch import files


class Parts(Listed[int]):
    """``2,8``: numbers of micro-batches."""

    name = "parts"

    def read(self, parts: list[str]) -> tuple[int, ...]:
        for part in parts:
            if not part.isdecimal() or int(part) < 2:
                raise ValueError(f"{part!r} is no number of parts; give whole numbers of at least 2, say 2,8")
        return tuple(sorted({int(part) for part in parts}))


@click.command()
@click.option("--nets", type=Names("net", tuple(lockstep_cases.ROWS)), default="conv,mlp", show_default=True)
@click.option("--parts", type=Parts(), default="2,4,8,16,32", show_default=True, help="Micro-batches of a mini-batch.")
@click.option("--modes", type=Names("mode", MODES), default=",".join(MODES), show_default=True)
@click.option(
    "--peers",
    type=Names("peer", PEERS, may_be_none=True),
    default=",".join(PEERS),
    show_default=True,
    help="Or 'none'.",
)
@click.option("--rows", type=click.IntRange(8), help="Examples of the mini-batch, in place of the net's own number.")
@click.option("--threads", type=Threads(), default="1", show_default=True, help="For every system.")
@click.option("--cores", type=Cores(), help="Cores to stand on, say 0,2; the first n of them with n threads.")
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Rounds of a step of each.")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write all tables to this file.")
def lockstep(
    nets: tuple[Net, ...],
    parts: tuple[int, ...],
    modes: tuple[str, ...],
    peers: tuple[str, ...],
    rows: int | None,
    threads: tuple[int, ...],
    cores: tuple[int, ...] | None,
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time a step in micro-batches and take its peak of memory: exact in lockstep, plain, undivided, checkpointed.

    Every way runs in a process of its own for each number of threads, on the same cores, one after the other in a new
    order every round. The memory is measured after the rounds, one step at a time.
    """
    places = choose_places(threads, cores)
    for net in nets:
        if max(parts) > (count := rows or lockstep_cases.ROWS[net]):
            raise click.UsageError(
                f"--parts has {max(parts)}, and the mini-batch of {net} {count} examples; take fewer"
            )
    limits, systems = Limits(), [*peers, *modes]
    sheets: list[Sheet] = []
    found: list[dict[str, Any]] = []
    with Talk() as talk, Crew(places, LOCKSTEP_SYSTEMS) as crew:
        versions = rounds.load(crew, systems, threads, talk)
        library = {"wholebatch": next(iter(versions.values()), "?")}
        header = [*machine.describe(places, library), f"{repeats} rounds"]
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        for net in nets:
            cases = [case for count in threads for case in cases_of(net, parts, versions, rows, count)]
            limits.forget_peak()
            between = partial(limits.measure_peak, crew, threads, talk)
            problems: dict[Contender, Case] = {lockstep_tables.contender_of(case): case for case in cases}
            timings = rounds.measure(crew, problems, repeats, talk, between, least_steps={})
            limits.tell_crowding(net, talk)
            memory = measure_memory(crew, [*cases, *smaller(cases)], talk)
            found += lockstep_tables.rows(list(memory | dict.fromkeys(cases)), timings, memory)
            told = lockstep_tables.ratios(net, cases, timings, memory)
            for sheet in (lockstep_tables.sheet_of(net, cases, timings, memory), tables.ratios(net, told)):
                sheets.append(sheet)
                talk.out.print(sheet.to_rich())
    talk.out.print(lockstep_tables.LEGEND, highlight=False, markup=False)
    if json_path is not None:
        files.write_json(json_path, found)
    if markdown is not None:
        text = ["\n".join(f"- {line}" for line in [*header, *talk.notes]), *(s.to_markdown() for s in sheets)]
        files.write(markdown, "\n\n".join([*text, lockstep_tables.LEGEND]) + "\n")


def cases_of(net: Net, parts: Iterable[int], systems: Iterable[str], rows: int | None, threads: int) -> list[Case]:
    """Each system once, or for each number of parts where there are parts."""
    counts = list(parts)
    whole = [Case(net, system, rows or lockstep_cases.ROWS[net], 1, threads) for system in systems]
    return [replace(case, parts=n) for case in whole for n in (counts if case.divided else [1])]


def smaller(cases: Iterable[Case]) -> list[Case]:
    """Plain training on an eighth of the mini-batch, for the bar on memory."""
    times = lockstep_tables.TIMES_LARGER
    return [
        replace(case, rows=case.rows // times)
        for case in cases
        if case.system in (UNDIVIDED, UNDIVIDED + TORCH) and case.rows % times == 0
    ]


def measure_memory(crew: Crew, cases: Iterable[Case], talk: Talk) -> dict[Case, dict[str, int | None]]:
    """What a step of each takes, in the processes that are there; one that fails is told and left out."""
    found: dict[Case, dict[str, int | None]] = {}
    for case in cases:
        worker = crew.workers.get((case.system, case.threads))
        if worker is None:
            continue
        talk.progress(f"memory of {lockstep_tables.contender_of(case)}")
        try:
            worker.ask("build", number=0, problem=asdict(case), seconds=0.0, least=1)
            found[case] = worker.ask("measure", number=0)["value"]
            worker.ask("drop")
        except WorkerError as error:
            talk.note(f"memory of {lockstep_tables.contender_of(case)} is left out: {error}")
            if not worker.alive:
                crew.dismiss(worker)
    return found
