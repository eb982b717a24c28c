"""What was timed, as rows for programs and sheets for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.limits import Limits
from benchmarks.ratios import Ratio
from benchmarks.rounds import Timings
from benchmarks.shapes import Shape
from benchmarks.sheet import Sheet
from wholebatch import files

MICRO = 1e6
NORMS = ("batch", "layer", "none")

LEGEND = """\
Times are microseconds per step, medians over interleaved rounds. wholebatch gathers shuffled rows of a table;
the peers get mini-batches that lie ready. GFLOP/s count the step's matrix products alone: 2·batch·(3·Σ in·out −
in₀·out₀), as the table needs no gradient. 'of peak': over the peak of multiply-adds that as many threads
reached between the rounds. 'of memory': the least bytes that a step moves where nothing but a block of rows
stays in cache (6 sweeps over each hidden layer's batch × width, 2 over the input, 4 over the output, weights
read and written) over the bandwidth of the triad a = b + s·c (12 bytes an element, without write-allocate) in
arrays larger than the caches; a shape that fits in a cache is not bound by it."""


def rows_of(timings: Timings) -> list[dict[str, Any]]:
    """One row a contender: microseconds per step."""
    rows = []
    for contender in timings.seconds:
        low, middle, high = timings.quantiles(contender)
        rows.append(
            {
                "shape": contender.shape,
                "system": contender.system,
                "norm": contender.norm,
                "threads": contender.threads,
                "median_us": middle * MICRO,
                "p20_us": low * MICRO,
                "p80_us": high * MICRO,
            }
        )
    return rows


def write_rows(path: Path, timings: Timings) -> None:
    """The rows as a JSON list, whole or not at all."""
    files.write_json(path, rows_of(timings))


def times(shape: Shape, timings: Timings, limits: Limits, chosen: int | None) -> Sheet:
    """One line a contender of this shape; ours with the threads that it chooses by itself has a star."""
    columns = ("norm", "system", "threads", "median", "p20–p80", "GFLOP/s", "of peak", "of memory")
    sheet = Sheet(f"{shape.name}: {shape}", columns, words=2)
    notes = []
    for norm in NORMS:
        for contender in sorted(timings.of(shape=shape.name, norm=norm), key=timings.median):
            low, middle, high = timings.quantiles(contender)
            star = "*" if contender.system == "wholebatch" and contender.threads == chosen else ""
            sheet.rows.append(
                (
                    norm,
                    contender.system,
                    f"{star}{contender.threads}",
                    microseconds(middle),
                    f"{microseconds(low)}–{microseconds(high)}",
                    f"{shape.flops / middle / 1e9:.1f}",
                    _share(shape.flops / middle, limits.peak.get(contender.threads)),
                    _share(shape.least_bytes / middle, limits.bandwidth.get(contender.threads)),
                )
            )
            if timings.notes[contender]:
                notes.append(f"{contender.system}, norm {norm}, T={contender.threads}: {timings.notes[contender]}")
    peaks = ", ".join(f"{value / 1e9:.0f} GFLOP/s on {n}" for n, value in sorted(limits.peak.items()))
    own = [f"* the number of threads that wholebatch chooses by itself: {chosen}."] if chosen else []
    sheet.caption = "\n".join([*own, *([f"Peak, threads: {peaks}."] if peaks else []), *notes])
    return sheet


def ratios(what: str, found: Sequence[Ratio]) -> Sheet:
    """One line a ratio, with its bar."""
    sheet = Sheet(f"{what}: ratios", ("ratio of medians", "bar", "value", "p20–p80 of rounds"), words=2)
    for ratio in found:
        verdict = "" if ratio.bar is None else f"{ratio.bar}: {'holds' if ratio.bar.holds(ratio.value) else 'MISSED'}"
        sheet.rows.append((ratio.what, verdict, f"{ratio.value:.3f}", f"{ratio.low:.3f}–{ratio.high:.3f}"))
    return sheet


def microseconds(seconds: float) -> str:
    """A time as text."""
    return f"{seconds * MICRO:,.1f}" if seconds < 1e-3 else f"{seconds * MICRO:,.0f}"


def _share(value: float, limit: float | None) -> str:
    return "" if limit is None else f"{value / limit:.1%}"
