"""What was measured of micro-batches: rows for programs, sheets for people, and the bars of the project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.lockstep_cases import MODES, PEERS, PLAIN, TORCH, UNDIVIDED, Case
from benchmarks.ratios import Bar, Ratio
from benchmarks.rounds import Contender, Timings
from benchmarks.sheet import Sheet

# Of `none` over plain accumulation, for a convolutional net whose parts take so long at least; and how many times
# plain training's mini-batch has to fit into its memory.
TIME_BAR, LEAST_SECONDS, TIMES_LARGER = Bar(1.3, False), 5e-3, 8
BOUNDED = ("cpu", "recompute")
MILLI = 1e3

LEGEND = """\
Times are milliseconds for forward, loss and backward of one optimizer step, without the update, medians over
interleaved rounds. 'undivided': the whole mini-batch at once; 'checkpoint' the same with torch.utils.checkpoint
around every two layers; 'plain': gradients accumulated over the parts, each normalised by itself, hence another
result; 'none', 'cpu', 'recompute': wholebatch.accumulate with that offload, which gives the undivided result.
'-torch': PyTorch's layers; all others ours. 'live': the peak of the bytes in storages that tensors of any operation
hold, parameters, gradients and inputs with them, in units of one layer's output over the whole mini-batch; without
what an operation needs inside of itself, and without what 'cpu' has put into host memory. 'resident': how far one
step made the process grow, with everything, also the copies in host memory: where the computation runs on a CPU they
are in the same memory, and 'cpu' saves none of it. Against plain training on an eighth of the mini-batch: the live
bytes of the whole one in lockstep over its."""


class Way(Contender):
    """A contender whose norm is the number of parts."""

    def __str__(self) -> str:
        return f"{self.system} ({self.shape}, {self.norm}, {self.threads} thread{'s' * (self.threads > 1)})"


Memory = Mapping[Case, Mapping[str, int | None]]


def contender_of(case: Case) -> Way:
    """The line of a table that this case is."""
    return Way(f"{case.net} {case.rows}", case.system, f"{case.parts} parts", case.threads)


def rows(cases: list[Case], timings: Timings, memory: Memory) -> list[dict[str, Any]]:
    """One row a case: what it is, microseconds a step, and bytes; null where it was not measured."""
    found = []
    for case in cases:
        row: dict[str, Any] = vars(case) | {"median_us": None, "p20_us": None, "p80_us": None}
        if contender_of(case) in timings.seconds:
            low, middle, high = (value * 1e6 for value in timings.quantiles(contender_of(case)))
            row |= {"median_us": middle, "p20_us": low, "p80_us": high}
        found.append(row | {"live_bytes": None, "resident_bytes": None} | dict(memory.get(case, {})))
    return found


def sheet_of(net: str, cases: list[Case], timings: Timings, memory: Memory) -> Sheet:
    """One line a case of this net."""
    columns = ("system", "parts", "median", "p20–p80", "a part", "live", "MB", "resident", "MB")
    mine = [case for case in cases if case.net == net and (contender_of(case) in timings.seconds or case in memory)]
    sheet = Sheet(f"{net}, {mine[0].rows if mine else 0} examples", columns, words=1)
    for case in sorted(mine, key=lambda case: (case.parts, (*PEERS, *MODES).index(case.system))):
        times = ("", "", "")
        if contender_of(case) in timings.seconds:
            low, middle, high = (value * MILLI for value in timings.quantiles(contender_of(case)))
            times = (f"{middle:,.1f}", f"{low:,.1f}–{high:,.1f}", f"{middle / case.parts:,.1f}")
        sizes = [memory.get(case, {}).get(key) for key in ("live_bytes", "resident_bytes")]
        told = [text for size in sizes for text in _size(size, case)]
        sheet.rows.append((case.system, str(case.parts), *times, *told))
    if mine:
        sheet.caption = f"One layer's output over the whole mini-batch: {mine[0].activation_bytes / 1e6:,.2f} MB."
    return sheet


def _size(size: int | None, case: Case) -> tuple[str, str]:
    return ("", "") if size is None else (f"{size / case.activation_bytes:.2f}", f"{size / 1e6:,.1f}")


def ratios(net: str, cases: list[Case], timings: Timings, memory: Memory) -> list[Ratio]:
    """All ratios of this net, the bars where the project set one."""
    mine = [case for case in cases if case.net == net]
    return [*_of_times(mine, timings), *_of_memory(mine, memory)]


def _of_times(cases: list[Case], timings: Timings) -> Iterator[Ratio]:
    for case in cases:
        above = contender_of(case)
        if case.system not in MODES or above not in timings.seconds:
            continue
        where = {"shape": above.shape, "threads": case.threads}
        for way in (PLAIN, UNDIVIDED):
            more = {"norm": above.norm} if way == PLAIN else {}
            below = _faster(timings, way, **where, **more)
            if below is None:
                continue
            long_enough = timings.median(below) / case.parts >= LEAST_SECONDS
            barred = way == PLAIN and case.system == "none" and case.net == "conv" and long_enough
            what = f"{case.system} / {below.system}, {case.parts} parts: time"
            yield Ratio(what, *timings.ratio(above, below), TIME_BAR if barred else None)


def _of_memory(cases: list[Case], memory: Memory) -> Iterator[Ratio]:
    """The bar is for the mode that needs less; ``recompute`` keeps an input of each layer, and is not made for it."""
    for small in memory:
        below = memory[small]["live_bytes"]
        found: list[tuple[float, Case]] = []
        for case in cases:
            same = (case.net, case.rows, case.threads) == (small.net, TIMES_LARGER * small.rows, small.threads)
            if same and case.system in BOUNDED and case.parts >= TIMES_LARGER and case in memory:
                above = memory[case]["live_bytes"]
                assert above is not None
                assert below is not None
                found.append((above / below, case))
        least = min((value for value, case in found if case.parts == TIMES_LARGER), default=None)
        for value, case in found:
            what = f"{case.system}, {case.parts} parts / {small.system}, {small.rows} examples: live bytes"
            barred = case.parts == TIMES_LARGER and value == least
            yield Ratio(what, value, value, value, Bar(1.0, False) if barred else None)


def _faster(timings: Timings, way: str, **where: object) -> Contender | None:
    """With PyTorch's layers or ours."""
    found = [timings.best(system=way + layers, **where) for layers in ("", TORCH)]
    return min((c for c in found if c is not None), key=timings.median, default=None)
