"""``python -m benchmarks sharing``: what a layer shared between ranks of one host costs more than a local one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import machine, rounds, tables
from benchmarks.cores import usable
from benchmarks.limits import Limits
from benchmarks.options import Cores, OutFile, choose_places
from benchmarks.problem import SharingProblem
from benchmarks.ranks import RankCrew
from benchmarks.ratios import Bar, Ratio
from benchmarks.rounds import Contender, Timings
from benchmarks.sheet import Sheet
from benchmarks.systems import SHARING_SYSTEMS
from benchmarks.talk import Talk
from wholebatch import files

STEPS = 200  # of a burst, the same on every rank
MICRO = tables.MICRO
# Of two ranks and 64 channels.
MORE_BAR, GATHER_BAR = Bar(60.0, False), Bar(8.0, True)
BAR_RANKS, BAR_CHANNELS = 2, 64

LEGEND = f"""\
Times are microseconds, medians over interleaved rounds of {STEPS} steps; of the ranks the slowest counts. 'local' and
'shared': batch norm and ReLU, forward and backward, of a mini-batch that is each rank's own, or all ranks' together,
for which they meet once forward and once backward. 'all_gather': one all_gather over gloo of what a forward pass has to
tell (2 x channels + 1 float32), and nothing else. Every rank has one thread on a core of its own, through loopback."""


class Meeting(Contender):
    """A contender whose threads are ranks."""

    def __str__(self) -> str:
        return f"{self.system} ({self.shape}, {self.threads} ranks)"


@click.command()
@click.option("--ranks", type=click.IntRange(2), default=2, show_default=True, help="Processes, each on its own core.")
@click.option("--channels", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rows", type=click.IntRange(2), default=256, show_default=True, help="Examples of each rank.")
@click.option("--cores", type=Cores(), help="Cores to stand on, say 0,2; as many as ranks.")
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Rounds of a burst of each.")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write the tables to this file.")
def sharing(
    ranks: int,
    channels: int,
    rows: int,
    cores: tuple[int, ...] | None,
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time a layer that ranks of this host share against a local one, and against an all_gather over gloo."""
    if ranks > len(usable()):
        raise click.UsageError(f"--ranks is {ranks}, and {len(usable())} cores can be used here; ask for fewer")
    places = choose_places((ranks,), cores)
    limits = Limits()
    with Talk() as talk, RankCrew(places, SHARING_SYSTEMS) as crew:
        versions = rounds.load(crew, SHARING_SYSTEMS, [ranks], talk)
        header = [*machine.describe(places, {"torch": next(iter(versions.values()), "?")}), f"{repeats} rounds"]
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        problems: dict[Contender, SharingProblem] = {
            Meeting(f"{channels} channels", system, "batch+relu", ranks): SharingProblem(rows, channels, system)
            for system in versions
        }
        between = partial(limits.measure_peak, crew, sorted({1, ranks}), talk)
        steps = dict.fromkeys(SHARING_SYSTEMS, STEPS)
        timings = rounds.measure(crew, problems, repeats, talk, between, least_steps=steps, burst=0.0)
        limits.tell_crowding(f"{ranks} ranks", talk)
        what = f"{channels} channels, {rows} rows on each of {ranks} ranks"
        barred = (ranks, channels) == (BAR_RANKS, BAR_CHANNELS)
        sheets = [times(what, timings), tables.ratios(what, ratios(timings, barred))]
        for sheet in sheets:
            talk.out.print(sheet.to_rich())
    talk.out.print(LEGEND, highlight=False, markup=False)
    if json_path is not None:
        files.write_json(json_path, rows_of(timings, channels, rows))
    if markdown is not None:
        parts = ["\n".join(f"- {line}" for line in [*header, *talk.notes]), *(s.to_markdown() for s in sheets)]
        files.write(markdown, "\n\n".join([*parts, LEGEND]) + "\n")


def rows_of(timings: Timings, channels: int, rows: int) -> list[dict[str, Any]]:
    """One row a contender: ``system``, ``ranks``, ``channels``, ``rows`` and microseconds."""
    found = []
    for row in tables.rows_of(timings):
        times = {key: row[key] for key in ("median_us", "p20_us", "p80_us")}
        found.append({"system": row["system"], "ranks": row["threads"], "channels": channels, "rows": rows} | times)
    return found


def times(what: str, timings: Timings) -> Sheet:
    """One line a contender."""
    sheet = Sheet(what, ("system", "median", "p20–p80"), words=1)
    for contender in sorted(timings.seconds, key=timings.median):
        low, middle, high = map(tables.microseconds, timings.quantiles(contender))
        sheet.rows.append((contender.system, middle, f"{low}–{high}"))
    return sheet


def ratios(timings: Timings, barred: bool = True) -> list[Ratio]:
    """What sharing costs more than a local layer, in microseconds, and a gather over that. Bars where ``barred``."""
    found = [timings.best(system=system) for system in ("local", "shared", "all_gather")]
    local, shared, gathered = found
    if local is None or shared is None:
        return []
    more = timings.median(shared) - timings.median(local)
    each = np.subtract(timings.seconds[shared], timings.seconds[local])
    low, high = np.nanquantile(each, [0.2, 0.8])
    told = [
        Ratio("shared - local, microseconds", more * MICRO, low * MICRO, high * MICRO, MORE_BAR if barred else None)
    ]
    if gathered is not None:
        one = timings.median(gathered)
        for count, what, bar in (
            (1, "one all_gather", GATHER_BAR if barred else None),
            (2, "two all_gathers, as many as a shared layer has meetings", None),
        ):
            if more > 0:
                pairs = np.divide(np.multiply(timings.seconds[gathered], count), each)
                low, high = np.nanquantile(pairs, [0.2, 0.8])
                told.append(Ratio(f"{what} / (shared - local)", count * one / more, float(low), float(high), bar))
    return told
