"""``python -m benchmarks scaling``: how a step's time grows with batch, width, depth and threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks import machine, rounds
from benchmarks.crew import Crew
from benchmarks.exponent import fit_exponent
from benchmarks.limits import Limits
from benchmarks.options import Cores, Names, OutFile, Threads, choose_places, every_thread
from benchmarks.problem import Problem
from benchmarks.rounds import Contender, Timings
from benchmarks.sheet import Sheet
from benchmarks.talk import Talk
from wholebatch import files

NORMS = ("batch", "none")
SYSTEMS = ("wholebatch", "torch")
CLASSES = 10
MICRO = 1e6


@dataclass(frozen=True)
class Point:
    """``batch`` rows of ``width`` columns through ``depth`` hidden layers of ``width`` neurons, to 10 classes."""

    batch: int = 1024
    width: int = 128
    depth: int = 3
    threads: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of the input, of each hidden layer and of the output."""
        return (self.width,) * (self.depth + 1) + (CLASSES,)

    def problem(self, norm: str) -> Problem:
        """What is trained, by SGD."""
        return Problem(self.batch, self.sizes, norm, "sgd", self.threads)


AXES: dict[str, tuple[int, ...]] = {
    "batch": (64, 256, 1024, 4096, 16384, 65536),
    "width": (16, 32, 64, 128, 256, 512, 1024),
    "depth": (1, 2, 4, 8, 16),
    "threads": (),  # those asked for
}


@click.command()
@click.option("--axes", type=Names("axis", tuple(AXES)), default=",".join(AXES), show_default=True)
@click.option("--threads", type=Threads(), default=every_thread, show_default="1 to the cores")
@click.option("--cores", type=Cores(), help="Cores to stand on, say 0,2; the first n of them with n threads.")
@click.option("--systems", type=Names("system", SYSTEMS), default=",".join(SYSTEMS), show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Rounds of a burst of each.")
@click.option("--json", "json_path", type=OutFile(), help="Write points and exponents to this file.")
@click.option("--markdown", type=OutFile(), help="Write the tables to this file.")
def scaling(
    axes: tuple[str, ...],
    threads: tuple[int, ...],
    cores: tuple[int, ...] | None,
    systems: tuple[str, ...],
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time a step as one thing grows around a middle: batch 1024, 3 hidden layers of 128, one thread.

    The exponent b is that of time = a * size^b, by least squares in logarithms, with its standard error. A step that is
    all matrix product has 1 along batch, 2 along width, 1 along depth and -1 along threads.
    """
    places = choose_places(threads, cores)
    sheets: list[Sheet] = []
    record: list[dict[str, Any]] = []
    with Talk() as talk, Crew(places) as crew:
        counts = threads if "threads" in axes else threads[:1]
        versions = rounds.load(crew, systems, counts, talk)
        header = machine.describe(places, versions)
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        for axis in axes:
            values = threads if axis == "threads" else AXES[axis]
            points = [replace(Point(threads=threads[0]), **{axis: value}) for value in values]
            problems = {
                Contender(str(value), system, norm, point.threads): point.problem(norm)
                for value, point in zip(values, points, strict=True)
                for system in versions
                for norm in NORMS
            }
            limits = Limits()
            busy = {point.threads for point in points} | {1}
            timings = rounds.measure(crew, problems, repeats, talk, partial(limits.measure_peak, crew, busy, talk))
            limits.tell_crowding(f"along {axis}", talk)
            found = summarise(axis, values, tuple(versions), timings)
            record.append(found)
            sheets.append(to_sheet(found))
            talk.out.print(sheets[-1].to_rich())
    if json_path is not None:
        files.write_json(json_path, record)
    if markdown is not None:
        parts = ["\n".join(f"- {line}" for line in [*header, *talk.notes]), *(s.to_markdown() for s in sheets)]
        files.write(markdown, "\n\n".join(parts))


def summarise(axis: str, values: Sequence[int], systems: Sequence[str], timings: Timings) -> dict[str, Any]:
    """What was found along one axis: the points, microseconds per step; and each system's and norm's exponent.

    ``{"axis", "points": [{"value", "system", "norm", "threads", "median_us", "p20_us", "p80_us"}],
    "exponents": [{"system", "norm", "exponent", "standard_error"}]}``; the error of two points is null.
    """
    points, exponents = [], []
    for system in systems:
        for norm in NORMS:
            there = [c for value in values for c in timings.of(shape=str(value), system=system, norm=norm)]
            for c in there:
                low, middle, high = (seconds * MICRO for seconds in timings.quantiles(c))
                times = {"median_us": middle, "p20_us": low, "p80_us": high}
                points.append({"value": int(c.shape), "system": system, "norm": norm, "threads": c.threads} | times)
            if len(there) > 1:
                fit = fit_exponent([int(c.shape) for c in there], [timings.median(c) for c in there])
                error = fit.error if len(there) > 2 else None
                exponents.append({"system": system, "norm": norm, "exponent": fit.exponent, "standard_error": error})
    return {"axis": axis, "points": points, "exponents": exponents}


def to_sheet(found: dict[str, Any]) -> Sheet:
    """A line a value; a pair of columns and the ratio batch norm / none for each system; the exponents below."""
    systems = list(dict.fromkeys(point["system"] for point in found["points"]))
    columns = [f"{system}, {norm}" for system in systems for norm in (*NORMS, "ratio")]
    sheet = Sheet(f"time of a step by {found['axis']}, microseconds", (found["axis"], *columns), words=0)
    medians = {(p["value"], p["system"], p["norm"]): p["median_us"] for p in found["points"]}
    for value in dict.fromkeys(point["value"] for point in found["points"]):
        cells = [f"{value:,}"]
        for system in systems:
            batch, none = (medians.get((value, system, norm)) for norm in NORMS)
            cells += [f"{batch:,.1f}" if batch else "", f"{none:,.1f}" if none else ""]
            cells.append(f"{batch / none:.3f}" if batch and none else "")
        sheet.rows.append(tuple(cells))
    lines = []
    for e in found["exponents"]:
        error = "" if e["standard_error"] is None else f" ± {e['standard_error']:.2f}"
        lines.append(f"{e['system']}, norm {e['norm']}: exponent {e['exponent']:.2f}{error}")
    sheet.caption = "\n".join(lines)
    return sheet
