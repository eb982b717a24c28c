"""The profile on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from wholebatch.cost.profile.record import Layer, Profile, Times
from wholebatch.cost.profile.words import answer, kind, notes, percent, rate, seconds, total, within


def tell(record: Profile) -> list[RenderableType]:
    """Tables by layer, by rank and of the conversion, then the answer."""
    parts: list[RenderableType] = []
    if record.layers:
        parts.append(_layers(record))
    if len(record.ranks) > 1:
        parts.append(_ranks(record))
    parts += [Text(f"note: {note}") for note in notes(record)]
    parts += [Text(""), *(Text(sentence) for sentence in answer(record))]
    return parts


def _layers(record: Profile) -> Table:
    table = _table("layer", "input", right=("forward", "backward", "of step", "MB", "GB/s"))
    converted = any(layer.converted is not None for layer in record.layers)
    met = any(times.wait is not None for times in record.ranks[0].layers)
    if met:
        _add(table, "wait", "exchange")
    if converted and record.conversion is not None:
        _add(table, "converted" if record.conversion.way == "convert" else "reverted", "saves")
    for layer, times in zip(record.layers, record.ranks[0].layers, strict=True):
        cells = _cells(layer, times)
        if met:
            cells += [within(times.wait), within(times.exchange)]
        if converted and record.conversion is not None:
            cells += _converted(layer, times)
        table.add_row(*map(Text, cells))
    return table


def _cells(layer: Layer, times: Times) -> list[str]:
    bytes_per_second = rate(layer, times)
    return [
        layer.name if layer.calls == 1 else f"{layer.name} ({layer.calls} calls)",
        kind(layer),
        within(times.forward),
        within(times.backward),
        percent(layer.share.median),
        f"{(layer.forward_bytes + layer.backward_bytes) / 1e6:.3g}",
        f"{bytes_per_second / 1e9:.2f}" if bytes_per_second else "-",
    ]


def _converted(layer: Layer, times: Times) -> list[str]:
    if layer.converted is None:
        return ["-", "-"]
    after = total(layer.converted)
    return [seconds(after), percent(1 - after / total(times)) if total(times) else "-"]


def _ranks(record: Profile) -> Table:
    table = _table("rank", "host", right=("step", "meetings", "wait", "exchange", "came last", "others waited"))
    for rank in record.ranks:
        row = [
            f"{rank.rank}{' (slowest)' if rank.rank == record.slowest else ''}",
            rank.host,
            within(rank.step),
            str(rank.meetings),
            within(rank.wait),
            within(rank.exchange),
            "-" if rank.caused is None else f"{rank.last:,} times",
            within(rank.caused),
        ]
        table.add_row(*map(Text, row))
    return table


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in left:
        table.add_column(head)
    _add(table, *right)
    return table


def _add(table: Table, *heads: str) -> None:
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
