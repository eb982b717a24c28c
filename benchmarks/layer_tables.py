"""What was timed of single layers: rows for programs, sheets for people, and the bars that the project set itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.layer_cases import Case
from benchmarks.limits import Limits
from benchmarks.ratios import Bar, Ratio
from benchmarks.rounds import Contender, Timings
from benchmarks.sheet import Sheet
from benchmarks.tables import microseconds, rows_of

# By allocator: ours, the floor, and the peers.
DEFAULT = ("wholebatch", "sweeps", ("torch", "compile-default"))
TUNED = ("wholebatch-tuned", "sweeps-tuned", ("tuned", "compile"))
# Where a layer's tensors come from memory; a small one has to be no slower than eager.
EAGER_BAR, PEER_BAR, FLOOR_BAR, SMALL_BAR = Bar(2.0, True), Bar(1.3, True), Bar(1.25, False), Bar(1.0, True)

LEGEND = """\
Times are microseconds for one layer, forward and backward, medians over interleaved rounds of a stack of layers: all
forward, then all backward, so that a backward pass meets its input as cold as in a net. Outputs and gradients are new
each time; an output is kept until its layer's backward pass is over, the input's gradient until then too. Running
statistics move; the gradients of input, weight and bias (and residual) are taken. 'tuned', 'compile' and what ends in
'-tuned' have glibc's allocator keep its memory (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_); the
others have it as it is. The floor: the sweeps over tensors that a layer cannot do without where no cache holds one.
'of sweeps': over as many plain sums, copies and additions, measured as a system of their own under the same allocator
and on as many threads. 'of triad': over the floor's bytes at the bandwidth of the triad a = b + s·c, the best sweep of
ten just before these rounds. Both are left out where the stack stays in a cache, which is 64x20 alone; there the only
bar is eager's."""


def contender_of(case: Case, system: str) -> Contender:
    """The line of a table that this case is for this system."""
    return Contender(f"{case.name} {case.dtype}", system, case.norm, case.threads)


def rows(case: Case, timings: Timings) -> list[dict[str, Any]]:
    """As :func:`benchmarks.tables.rows_of`, with ``layout`` and ``dtype``."""
    more = {"shape": "x".join(map(str, case.shape)), "layout": case.layout, "dtype": case.dtype}
    return [{**row, **more} for row in rows_of(timings)]


def times(case: Case, timings: Timings, limits: Limits) -> Sheet:
    """One line a contender of this case, whatever its threads."""
    forward, backward = case.sweeps
    sheet = Sheet(str(case), ("system", "threads", "median", "p20–p80", "of sweeps", "of triad"), words=1)
    notes = [f"Floor: {case.least_bytes / 1e6:,.2f} MB, {forward} sweeps forward and {backward} backward."]
    notes += [f"Stack: {case.layers} layers; {limits.describe_bandwidth()}."]
    for contender in sorted(timings.seconds, key=timings.median):
        low, middle, high = timings.quantiles(contender)
        floor, bandwidth = _sweeps_beside(timings, contender), limits.bandwidth.get(contender.threads)
        sheet.rows.append(
            (
                contender.system,
                str(contender.threads),
                microseconds(middle),
                f"{microseconds(low)}–{microseconds(high)}",
                f"{middle / timings.median(floor):.2f}" if floor and case.memory_bound else "",
                f"{middle * bandwidth / case.least_bytes:.2f}" if bandwidth and case.memory_bound else "",
            )
        )
        if timings.notes[contender]:
            notes.append(f"{contender.system}, T={contender.threads}: {timings.notes[contender]}")
    sheet.caption = "\n".join(notes)
    return sheet


def ratios(case: Case, timings: Timings, limits: Limits) -> list[Ratio]:
    """All ratios of this case, each side on the number of threads that is best for it; bars for ``batch+relu``."""
    found = [*_against_peers(case, timings), *_against_floor(case, timings, limits)]
    if case.norm == "batch+relu":
        return found
    return [Ratio(r.what, r.value, r.low, r.high) for r in found]


def _against_peers(case: Case, timings: Timings) -> Iterator[Ratio]:
    bound = case.memory_bound
    for ours, _, peers in (DEFAULT, TUNED):
        mine = timings.best(system=ours)
        theirs = _best(timings, peers)
        if mine is None or theirs is None:
            continue
        eager = timings.best(system="torch") if ours == DEFAULT[0] else None
        if eager is not None:
            yield _over(timings, eager, mine, EAGER_BAR if bound else SMALL_BAR)
        if eager is None or theirs != eager:
            bar = PEER_BAR if bound and ours == TUNED[0] else None
            yield _over(timings, theirs, mine, bar, "best peer, ")


def _against_floor(case: Case, timings: Timings, limits: Limits) -> Iterator[Ratio]:
    if not case.memory_bound:
        return
    for ours, sweeps, _ in (DEFAULT, TUNED):
        mine, floor = timings.best(system=ours), timings.best(system=sweeps)
        if mine is not None and floor is not None:
            yield _over(timings, mine, floor, FLOOR_BAR)
        if mine is not None and mine.threads in limits.bandwidth:
            least = case.least_bytes / limits.bandwidth[mine.threads]
            low, middle, high = (value / least for value in timings.quantiles(mine))
            what = f"{ours} (T={mine.threads}) / floor at the triad's bandwidth (T={mine.threads})"
            yield Ratio(what, middle, low, high, FLOOR_BAR)


def _over(timings: Timings, above: Contender, below: Contender, bar: Bar | None, who: str = "") -> Ratio:
    what = f"{who}{above.system} (T={above.threads}) / {below.system} (T={below.threads})"
    return Ratio(what, *timings.ratio(above, below), bar)


def _best(timings: Timings, systems: Iterable[str]) -> Contender | None:
    found = (timings.best(system=system) for system in systems)
    return min((c for c in found if c is not None), key=timings.median, default=None)


def _sweeps_beside(timings: Timings, contender: Contender) -> Contender | None:
    """The sweeps under the same allocator on as many threads."""
    for ours, sweeps, peers in (DEFAULT, TUNED):
        if contender.system in (ours, sweeps, *peers):
            return timings.best(system=sweeps, threads=contender.threads)
    return None
