"""The profile's section of a page."""

from __future__ import annotations

from wholebatch.cost.profile import figures
from wholebatch.cost.profile.record import Profile, Spread
from wholebatch.cost.profile.words import answer, interval, notes, percent, rate, seconds
from wholebatch.pages.section import Cell, Section, Shown, Table, Tile

Row = list[Cell]


def describe(record: Profile) -> Section:
    """Answer, pictures and tables."""
    shown = []
    if record.layers:
        shown.append(Shown(figures.by_layer(record), _layers(record)))
    if len(record.ranks) > 1:
        shown.append(Shown(figures.by_rank(record), _ranks(record)))
    pictures = figures.before_and_after(record)
    if pictures:
        shown += [Shown(pictures[0], _conversion(record)), Shown(pictures[1], _converted(record))]
    return Section(
        name="profile",
        title=f"Your step: {record.target}",
        answer=answer(record),
        shown=shown,
        notes=notes(record),
        tiles=_tiles(record),
    )


def _tiles(record: Profile) -> list[Tile]:
    tiles = [Tile(percent(record.share.median), f"of the step of {record.target} goes to normalisation")]
    if record.conversion is not None:
        saving = record.conversion.saving
        does = "converting" if record.conversion.way == "convert" else "going back to torch.nn"
        if saving.low > 0:
            tiles.append(Tile(percent(saving.median), f"of the step saved by {does}, measured"))
        elif saving.high < 0:
            tiles.append(Tile(percent(-saving.median), f"slower by {does}, measured"))
        else:
            tiles.append(Tile("0 %", f"measurable difference by {does}"))
    slowest = next((rank for rank in record.ranks if rank.rank == record.slowest), None)
    if slowest is not None and slowest.caused is not None:
        tiles.append(Tile(seconds(slowest.caused.median), f"a step that others waited for rank {slowest.rank}"))
    return tiles


def _layers(record: Profile) -> Table:
    columns = [
        *("layer", "class", "input", "dtype", "calls", "forward, µs", "p20", "p80", "backward, µs", "p20", "p80"),
        *("% of the step", "MB forward", "MB backward", "GB/s", "wait, µs", "exchange, µs"),
    ]
    rows = []
    for layer, times in zip(record.layers, record.ranks[0].layers, strict=True):
        bytes_per_second = rate(layer, times)
        row: Row = [layer.name, layer.kind, "×".join(map(str, layer.shape)), layer.dtype, layer.calls]
        row += [*_three(times.forward), *_three(times.backward), 100 * layer.share.median]
        row += [
            layer.forward_bytes / 1e6,
            layer.backward_bytes / 1e6,
            bytes_per_second / 1e9 if bytes_per_second else None,
        ]
        row += [_three(times.wait)[0], _three(times.exchange)[0]]
        rows.append(row)
    return Table("The normalisation layers, per step, on rank 0; MB: the least that can be moved", columns, rows)


def _ranks(record: Profile) -> Table:
    columns = [
        *("rank", "host", "step, ms", "p20", "p80", "meetings a step", "wait, µs", "p20", "p80"),
        *("exchange, µs", "p20", "p80", "came last", "others waited for it, µs"),
    ]
    rows: list[Row] = [
        [
            rank.rank,
            rank.host,
            *_three(rank.step, 1e-3),
            rank.meetings,
            *_three(rank.wait),
            *_three(rank.exchange),
            None if rank.caused is None else rank.last,
            _three(rank.caused)[0],
        ]
        for rank in record.ranks
    ]
    return Table("The ranks, per step", columns, rows)


def _conversion(record: Profile) -> Table:
    conversion = record.conversion
    assert conversion is not None
    rows: list[Row] = [
        ["as it is", *_three(conversion.before, 1e-3)],
        ["changed", *_three(conversion.after, 1e-3)],
    ]
    caption = f"The whole step; the change saves {interval(conversion.saving)} of it, {conversion.saving.pairs} pairs"
    return Table(caption, ["batch norms", "step, ms", "p20", "p80"], rows)


def _converted(record: Profile) -> Table:
    columns = ["layer", "forward before, µs", "after", "backward before, µs", "after"]
    rows: list[Row] = [
        [
            layer.name,
            _three(times.forward)[0],
            _three(layer.converted.forward)[0],
            _three(times.backward)[0],
            _three(layer.converted.backward)[0],
        ]
        for layer, times in zip(record.layers, record.ranks[0].layers, strict=True)
        if layer.converted is not None
    ]
    return Table("The layers that changed, per step", columns, rows)


def _three(spread: Spread | None, unit: float = 1e-6) -> Row:
    """Median, p20 and p80 in a unit; dashes for None."""
    if spread is None:
        return [None, None, None]
    return [spread.median / unit, spread.low / unit, spread.high / unit]
