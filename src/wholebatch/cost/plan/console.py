"""The plan on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wholebatch.cost.plan.record import Check, Plan
from wholebatch.cost.plan.words import WHOSE, answers, duration, notes, percent

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def tell(record: Plan) -> list[RenderableType]:
    """The table by workers, what was found, the check, and how it was predicted."""
    from rich.text import Text

    said: list[RenderableType] = [_forecasts(record)]
    if record.check is not None:
        said += [_checked(record.check), *([_slept(record.check)] if record.check.slept else [])]
    return [*said, Text("\n".join(answers(record))), Text(), Text("\n".join(notes(record)), style="dim")]


def _forecasts(record: Plan) -> Table:
    table = _table("a step by workers", ("workers", "batch norm over"))
    for name in ("step", "p50", "p95", "compute", "wait", "wait %", "exchange", "of it gradients", "found by"):
        table.add_column(name, justify="left" if name == "found by" else "right")
    for one in record.forecasts:
        times = (one.mean_us, one.p50_us, one.p95_us, one.compute_us, one.wait_us)
        table.add_row(
            f"{one.workers:,}",
            WHOSE[one.synchronisation] + (f" of {one.group}" if one.synchronisation == "groups" else ""),
            *map(duration, times),
            f"{100 * one.wait_share:.1f}",
            duration(one.exchange_us),
            duration(one.gradients_us),
            "simulation" if one.method == "simulated" else one.method,
            end_section=one.synchronisation == "none",
        )
    return table


def _checked(check: Check) -> Table:
    table = _table(f"checked: ranks on {check.cores} cores of this host", ("ranks", "batch norm over"))
    for name in ("predicted", "measured", "p20 – p80", "error", "told compute", "error", "idle predicted", "measured"):
        table.add_column(name, justify="right")
    for line in check.lines:
        table.add_row(
            f"{line.workers}",
            "all ranks" if line.synchronisation == "all" else "each alone",
            duration(line.predicted_us),
            duration(line.median_us),
            f"{duration(line.p20_us)} – {duration(line.p80_us)}",
            percent(line.error_percent),
            duration(line.told_us),
            percent(line.told_error_percent),
            duration(line.predicted_idle_us),
            duration(line.measured_idle_us),
        )
    return table


def _slept(check: Check) -> Table:
    table = _table("checked: ranks that sleep in place of computing", ("ranks", "meeting"))
    for name in ("predicted", "measured", "p20 – p80", "error"):
        table.add_column(name, justify="right")
    for line in check.slept:
        table.add_row(
            f"{line.workers}",
            "after each stretch" if line.synchronisation == "all" else "at the end",
            duration(line.predicted_us),
            duration(line.median_us),
            f"{duration(line.p20_us)} – {duration(line.p80_us)}",
            percent(line.error_percent),
        )
    return table


def _table(title: str, left: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in left:
        table.add_column(name, justify="right" if name in ("workers", "ranks") else "left", no_wrap=True)
    return table
