"""What was timed, as rows for programs and tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.rounds import Timings
from benchmarks.shapes import Shape
from wholebatch import files

MICRO = 1e6


def rows_of(found: dict[str, Timings]) -> list[dict[str, Any]]:
    """One row a contender: microseconds per step."""
    rows = []
    for shape, timings in found.items():
        for contender in timings.seconds:
            low, middle, high = timings.quantiles(contender)
            rows.append(
                {
                    "shape": shape,
                    "system": contender.system,
                    "norm": contender.norm,
                    "threads": contender.threads,
                    "median_us": middle * MICRO,
                    "p20_us": low * MICRO,
                    "p80_us": high * MICRO,
                }
            )
    return rows


def write_rows(path: Path, found: dict[str, Timings]) -> None:
    """The rows as a JSON list, whole or not at all."""
    files.write_json(path, rows_of(found))


def of_shape(shape: Shape, timings: Timings) -> Table:
    """One line a contender."""
    table = Table(title=f"{shape.name}: {shape}", title_justify="left")
    for name in ("system", "norm"):
        table.add_column(name)
    for name in ("threads", "median us", "p20-p80", "GFLOP/s"):
        table.add_column(name, justify="right")
    for contender in sorted(timings.seconds, key=lambda c: (c.norm, c.threads, timings.median(c))):
        low, middle, high = (value * MICRO for value in timings.quantiles(contender))
        table.add_row(
            contender.system,
            contender.norm,
            str(contender.threads),
            f"{middle:,.1f}",
            f"{low:,.1f}-{high:,.1f}",
            f"{shape.flops / middle / 1e3:.1f}",
        )
    return table
