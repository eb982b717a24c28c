"""Training steps whose products have rounded operands, beside those that have not: the systems, and their table."""

from __future__ import annotations

from benchmarks import systems
from benchmarks.ratios import OURS
from benchmarks.rounds import LEAST_STEPS as LEAST_STEPS_OF_HIGHEST
from benchmarks.rounds import Timings
from benchmarks.shapes import Shape
from benchmarks.sheet import Sheet
from benchmarks.systems import ROUNDED
from benchmarks.tables import NORMS, microseconds

SYSTEMS = systems.SYSTEMS | {name: systems.SYSTEMS[base] for name, (base, _) in ROUNDED.items()}
LEAST_STEPS = LEAST_STEPS_OF_HIGHEST | {
    name: LEAST_STEPS_OF_HIGHEST[base] for name, (base, _) in ROUNDED.items() if base in LEAST_STEPS_OF_HIGHEST
}


def of(system: str) -> str:
    """The precision of a system's products."""
    return ROUNDED[system][1] if system in ROUNDED else "highest"


def times(shape: Shape, timings: Timings) -> Sheet:
    """One line for each system that has several precisions, at its best number of threads.

    ``over highest``: how many times faster it is than itself at the highest precision; ``over ours``: how many times
    faster than wholebatch of the same precision.
    """
    columns = ("norm", "system", "threads", "median", "p20–p80", "GFLOP/s", "over highest", "over ours")
    sheet = Sheet(f"{shape.name}: {shape}, by precision of the products", columns, words=2)
    notes = []
    for norm in NORMS:
        best = {name: timings.best(shape=shape.name, system=name, norm=norm) for name in SYSTEMS}
        there = {name: contender for name, contender in best.items() if contender is not None}
        bases = {base for name, (base, _) in ROUNDED.items() if name in there}
        shown = [name for name in there if name in ROUNDED or name in bases]
        for name in sorted(shown, key=lambda name: timings.median(there[name])):
            base, precision = ROUNDED.get(name, (name, "highest"))
            low, middle, high = timings.quantiles(there[name])
            ours = OURS if precision == "highest" else f"{OURS}-{precision}"
            over = [
                f"{timings.median(there[other]) / middle:.2f}" if other in there and other != name else ""
                for other in (base, ours)
            ]
            span = f"{microseconds(low)}–{microseconds(high)}"
            speed = f"{shape.flops / middle / 1e9:.1f}"
            sheet.rows.append((norm, name, str(there[name].threads), microseconds(middle), span, speed, *over))
            if name in ROUNDED and timings.notes[there[name]]:
                notes.append(f"{name}, norm {norm}: {timings.notes[there[name]]}")
    sheet.caption = "\n".join(["Each at its best number of threads; no bar is set here.", *notes])
    return sheet
