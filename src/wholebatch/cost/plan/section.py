"""The plan's section of a page."""

from __future__ import annotations

from wholebatch.cost.plan import figures
from wholebatch.cost.plan.record import Check, Plan
from wholebatch.cost.plan.words import WHOSE, answers, duration, notes
from wholebatch.pages.section import Cell, Section, Shown, Table, Tile


def describe(record: Plan) -> Section:
    """Answer, pictures and tables."""
    shown = [Shown(figures.steps(record), _forecasts(record)), Shown(figures.wait_shares(record), None)]
    if record.check is not None:
        shown.append(Shown(figures.checked(record.check), _checked(record.check)))
        if record.check.slept:
            shown.append(Shown(None, _slept(record.check)))
    shown.append(Shown(None, _layers(record)))
    return Section(
        name="plan",
        title="A plan for more workers",
        answer=answers(record),
        shown=shown,
        notes=notes(record),
        tiles=_tiles(record),
    )


def _tiles(record: Plan) -> list[Tile]:
    whole, own = record.of("all")[-1], record.of("none")[-1]
    found = [
        Tile(duration(whole.mean_us), f"a step with {whole.workers:,} workers, batch norm over all of them"),
        Tile(f"{100 * whole.wait_share:.0f} %", "of it a worker waits for slower ones"),
        Tile(f"{whole.mean_us / own.mean_us:.2f} ×" if own.mean_us else "–", "over batch norm of each worker alone"),
    ]
    if record.check is not None:
        worst = max((abs(line.error_percent) for line in record.check.lines), default=0.0)
        found.append(Tile(f"{worst:.0f} %", "largest error of the predictions that were checked on this host"))
    return found


def _forecasts(record: Plan) -> Table:
    rows: list[list[Cell]] = [
        [
            one.workers,
            WHOSE[one.synchronisation] + (f" of {one.group}" if one.synchronisation == "groups" else ""),
            one.mean_us,
            one.p50_us,
            one.p95_us,
            one.compute_us,
            one.wait_us,
            100 * one.wait_share,
            one.exchange_us,
            one.gradients_us,
            "simulation" if one.method == "simulated" else one.method,
        ]
        for one in record.forecasts
    ]
    heads = ("workers", "batch norm over", "µs per step", "median", "p95", "compute", "wait", "wait %", "exchange")
    return Table("A step by workers; times in microseconds", (*heads, "of it gradients", "found by"), rows)


def _checked(check: Check) -> Table:
    rows: list[list[Cell]] = [
        [
            line.workers,
            "all ranks" if line.synchronisation == "all" else "each alone",
            line.predicted_us,
            line.median_us,
            line.p20_us,
            line.p80_us,
            line.error_percent,
            line.told_us,
            line.told_error_percent,
            line.alone_us,
            line.compute_us,
            line.others,
            line.crowding,
            line.predicted_idle_us,
            line.measured_idle_us,
            line.steps,
        ]
        for line in check.lines
    ]
    heads = (
        *(
            "ranks",
            "batch norm over",
            "µs predicted",
            "measured",
            "p20",
            "p80",
            "error %",
            "told the compute",
            "error %",
        ),
        *("compute alone", "compute together", "other threads", "crowding", "idle predicted", "idle measured", "steps"),
    )
    return Table("Predicted and measured steps of ranks on this host; times in microseconds", heads, rows)


def _slept(check: Check) -> Table:
    rows: list[list[Cell]] = [
        [
            line.workers,
            "after each stretch" if line.synchronisation == "all" else "at the end",
            line.predicted_us,
            line.median_us,
            line.p20_us,
            line.p80_us,
            line.error_percent,
            line.steps,
        ]
        for line in check.slept
    ]
    heads = ("ranks", "meeting", "µs predicted", "measured", "p20", "p80", "error %", "steps")
    return Table("Predicted and measured steps of ranks that sleep in place of computing; microseconds", heads, rows)


def _layers(record: Plan) -> Table:
    rows: list[list[Cell]] = [
        [
            layer.name,
            layer.forward_us,
            100 * layer.forward_spread,
            layer.forward_bytes or None,
            layer.backward_us,
            100 * layer.backward_spread,
            layer.backward_bytes or None,
        ]
        for layer in record.workload.layers
    ]
    rows.append(["update", record.workload.update_us, 100 * record.workload.update_spread, None, None, None, None])
    rows.append(["sum of gradients", None, None, record.workload.gradient_bytes or None, None, None, None])
    heads = ("layer", "µs forward", "varies by %", "bytes met", "µs backward", "varies by %", "bytes met")
    return Table("One worker's step, from which everything is predicted", heads, rows)
