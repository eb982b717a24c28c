"""What was timed of layers on a GPU: rows for programs, sheets for people, and the bars that the project set itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_cases import GpuCase
from benchmarks.ratios import Bar, Ratio
from benchmarks.rounds import Timings
from benchmarks.sheet import Sheet
from benchmarks.tables import MICRO, microseconds

OURS = "wholebatch"
EAGER_BAR, COMPILE_BAR, COPY_BAR = Bar(1.5, True), Bar(1.1, True), Bar(0.8, True)

LEGEND = """\
Times are microseconds for one layer, forward and backward, medians over interleaved rounds of a stack of layers: all
forward, then all backward, so that a backward pass meets its input as cold as in a net. Measured by the card's own
events. What ends in 'graph' replays the same step as one CUDA graph. 'of copy': the least bytes that a layer moves
where no cache holds a tensor (3 sweeps forward and 5 backward; with a residual 4 and 7), over the time, over the
bandwidth of a copy within the card's memory in the same run. SyncBatchNorm in a group of one takes torch's own batch
norm."""


def rows(case: GpuCase, timings: Timings, bandwidth: float) -> list[dict[str, Any]]:
    """One row a contender."""
    found = []
    for contender in timings.seconds:
        low, middle, high = timings.quantiles(contender)
        found.append(
            {
                "shape": "x".join(map(str, case.shape)),
                "layout": case.layout,
                "dtype": case.dtype,
                "norm": case.norm,
                "system": contender.system,
                "median_us": middle * MICRO,
                "p20_us": low * MICRO,
                "p80_us": high * MICRO,
                "of_copy": case.least_bytes / middle / bandwidth,
            }
        )
    return found


def times(case: GpuCase, timings: Timings, bandwidth: float) -> Sheet:
    """One line a contender."""
    sheet = Sheet(str(case), ("system", "median", "p20–p80", "of copy"), words=1)
    for contender in sorted(timings.seconds, key=timings.median):
        low, middle, high = timings.quantiles(contender)
        share = f"{case.least_bytes / middle / bandwidth:.0%}" if case.memory_bound else ""
        sheet.rows.append((contender.system, microseconds(middle), f"{microseconds(low)}–{microseconds(high)}", share))
    forward, backward = case.sweeps
    sheet.caption = (
        f"Floor: {case.least_bytes / 1e6:,.1f} MB, {forward} sweeps forward and {backward} backward. "
        f"Stack: {case.layers} layers."
    )
    return sheet


def ratios(case: GpuCase, timings: Timings, bandwidth: float, cache: int) -> list[Ratio]:
    """Ours against the peers, launched and as a graph, and against the copy; bars for ``batch+relu``."""
    return list(_ratios(case, timings, bandwidth, cache))


def _ratios(case: GpuCase, timings: Timings, bandwidth: float, cache: int) -> Iterator[Ratio]:
    barred = case.norm == "batch+relu" and case.memory_bound
    for ending in ("", ", graph"):
        ours = timings.best(system=OURS + ending)
        if ours is None:
            continue
        for peer, bar in (("torch", EAGER_BAR), ("sync", None), ("compile", COMPILE_BAR)):
            theirs = timings.best(system=peer + ending)
            if theirs is not None:
                what = f"{theirs.system} / {ours.system}"
                yield Ratio(what, *timings.ratio(theirs, ours), bar if barred else None)
        if case.memory_bound:
            low, middle, high = (case.least_bytes / value / bandwidth for value in timings.quantiles(ours))
            bar = COPY_BAR if barred and case.tensor_bytes > cache > 0 else None
            yield Ratio(f"bytes a second of {ours.system} / of a copy", middle, high, low, bar)
