"""What was timed of ranks that share a mini-batch, as rows for programs and sheets for people, and the bars."""

from __future__ import annotations

from typing import Any

from benchmarks.ratios import Bar, Ratio
from benchmarks.rounds import Contender, Timings
from benchmarks.sheet import Sheet
from benchmarks.tables import microseconds
from benchmarks.tables import rows_of as plain_rows

ONE, RANKS, DDP = "wholebatch", "ranks", "ddp"
AT_ONCE = "at once"
HOWS = {
    "all": "all ranks",
    AT_ONCE: "all ranks, no overlap",
    "group": "two groups",
    "none": "each rank alone",
    "late": "all ranks, a step late",
}
# What the project set itself: at two ranks of one thread each, their time over that of one process with two threads,
# and the share of exchange in a step.
BAR_RANKS = 2
TIME_BARS = dict.fromkeys("CDEF", Bar(1.15, False))
EXCHANGE_BARS = dict.fromkeys("DEF", Bar(0.10, False))

LEGEND = """\
Times are microseconds per step, medians over interleaved rounds; of ranks the slowest counts. 'one process': as many
threads as there are ranks. 'ranks': one thread each; batch norm is over what stands beside it. 'ddp':
DistributedDataParallel over gloo with a batch norm over all ranks written by hand (one all_gather forward, one
all_reduce backward), in the fastest of the variants named below its table; it gets mini-batches that lie ready, the
others gather shuffled rows of a table. 'wait': the part of a step in which a rank stands until what the others tell
is there. 'exchange': the part in which it tells them, and merges what they told; adding up the shards' weight gradients
is not in it. Means over ranks, medians over bursts by themselves after the rounds; 'idle' is their sum, which is all
that DDP tells: the time in its collectives that is not hidden behind compute. The rank that waits least waits for the
messages' way at least: exchange with that wait is the most that talking takes, whoever is late."""


class Spread(Contender):
    """A contender whose ``norm`` says how the ranks' batch norms meet, and whose threads may be ranks."""

    def __str__(self) -> str:
        how = f", {HOWS[self.norm]}" if self.norm else ""
        return f"{self.system} (shape {self.shape}{how}, {self.threads} {'ranks' if self.system != ONE else 'threads'})"


def rows_of(timings: Timings) -> list[dict[str, Any]]:
    """One row a contender: ``shape``, ``system``, ``sync``, ``ranks``, microseconds, and shares where they are known.

    ``threads``: of each process.
    """
    rows = []
    for contender, row in zip(timings.seconds, plain_rows(timings), strict=True):
        times = {key: row[key] for key in ("median_us", "p20_us", "p80_us")}
        one = contender.system == ONE
        told = timings.told.get(contender, {})
        rows.append(
            {
                "shape": contender.shape,
                "system": contender.system,
                "sync": contender.norm or None,
                "ranks": 1 if one else contender.threads,
                "threads": contender.threads if one else 1,
                **times,
                **{key: told.get(key) for key in ("wait", "exchange", "idle")},
            }
        )
    return rows


def times(what: str, timings: Timings) -> Sheet:
    """One line a contender."""
    columns = ("system", "batch norm over", "median", "p20–p80", "wait", "exchange", "idle")
    sheet = Sheet(what, columns, words=2)
    notes = []
    for contender in sorted(timings.seconds, key=timings.median):
        low, middle, high = timings.quantiles(contender)
        told = timings.told.get(contender, {})
        sheet.rows.append(
            (
                "one process" if contender.system == ONE else contender.system,
                HOWS[contender.norm] if contender.norm else "all",
                microseconds(middle),
                f"{microseconds(low)}–{microseconds(high)}",
                *(f"{told[key]:.1%}" if key in told else "" for key in ("wait", "exchange", "idle")),
            )
        )
        if timings.notes[contender]:
            notes.append(f"{contender.system}: {timings.notes[contender]}")
    sheet.caption = "\n".join(notes)
    return sheet


def ratios(timings: Timings, shape: str, ranks: int) -> list[Ratio]:
    """What these timings, of one shape and number of ranks, say about the claims."""
    barred = ranks == BAR_RANKS

    def find(system: str, how: str = "") -> Contender | None:
        return timings.best(shape=shape, system=system, norm=how, threads=ranks)

    one, ddp, whole = find(ONE), find(DDP), find(RANKS, "all")
    base = next((c for c in (whole, *timings.of(shape=shape, system=RANKS, threads=ranks)) if c is not None), None)
    found = []
    if whole is not None and one is not None:
        bar = TIME_BARS.get(shape) if barred else None
        found.append(Ratio("ranks / one process with as many threads", *timings.ratio(whole, one), bar))
    if whole is not None and "exchange" in timings.told.get(whole, {}):
        told = timings.told[whole]
        bar = EXCHANGE_BARS.get(shape) if barred else None
        low, high = told["exchange_range"]
        found.append(Ratio("exchange / step", told["exchange"], low, high, bar))
        found.append(Ratio("exchange and the least wait of a rank / step", told["most"], *told["most_range"]))
    if ddp is not None and base is not None:
        found.append(Ratio(f"ddp / ranks ({HOWS[base.norm]})", *timings.ratio(ddp, base)))
    for how in (AT_ONCE, "group", "none", "late"):
        other = find(RANKS, how)
        if other is not None and whole is not None:
            found.append(Ratio(f"{HOWS[how]} / all ranks", *timings.ratio(other, whole)))
    return found
