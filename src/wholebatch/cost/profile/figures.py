"""The pictures of the profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from wholebatch.cost.profile.record import Conversion, Layer, Profile, Spread, Times
from wholebatch.cost.profile.words import kind, seconds, total, within
from wholebatch.pages.pictures import Picture, arrange, plain, short

MOST_BARS = 24
"""Layers in a picture, the dearest; the table has all."""
MOST_NAME = 26
ROW, PAIR = 30, 44  # CSS pixels of a horizontal bar, and of two


def by_layer(record: Profile) -> Picture:
    """Forward and backward of each layer, as shares of the step."""
    pairs = _dearest(record)
    traces = []
    for part in ("forward", "backward"):
        spreads = [getattr(times, part) for _, times in pairs]
        traces.append(
            go.Bar(
                y=list(range(len(pairs))),
                x=[
                    100 * layer.share.median * spread.median / (total(times) or 1) if spread else 0
                    for (layer, times), spread in zip(pairs, spreads, strict=True)
                ],
                name=part,
                orientation="h",
                customdata=[
                    [plain(layer.name), plain(kind(layer)), within(spread)]
                    for (layer, _), spread in zip(pairs, spreads, strict=True)
                ],
                hovertemplate=(
                    "%{customdata[0]}<br>%{customdata[1]}<br>" + part + " %{customdata[2]}, %{x:.2f} % of the step"
                    "<extra></extra>"
                ),
            )
        )
    left_out = len(record.layers) - len(pairs)
    words = "What each layer takes of a step, forward and backward" + (
        f"; the {len(pairs)} dearest, the other {left_out} are in the table." if left_out else "."
    )
    layout = _rows([layer.name for layer, _ in pairs], "% of the step", barmode="stack")
    return Picture("layers", "By layer", words, go.Figure(traces, layout), "wide", 110 + ROW * len(pairs))


def by_rank(record: Profile) -> Picture | None:
    """Waiting and exchanging of each rank per step; None where it is not known."""
    ranks = [rank for rank in record.ranks if rank.wait is not None and rank.exchange is not None]
    if not ranks:
        return None
    unit, size = _unit(max((r.wait.high if r.wait else 0.0) + (r.exchange.high if r.exchange else 0.0) for r in ranks))
    traces = []
    for part, name in (("exchange", "exchange"), ("wait", "wait for others")):
        spreads: list[Spread] = [getattr(rank, part) for rank in ranks]
        traces.append(
            go.Bar(
                y=list(range(len(ranks))),
                x=[spread.median / size for spread in spreads],
                name=name,
                orientation="h",
                customdata=[
                    [rank.rank, plain(rank.host), within(spread), rank.last]
                    for rank, spread in zip(ranks, spreads, strict=True)
                ],
                hovertemplate=(
                    "rank %{customdata[0]} on %{customdata[1]}<br>" + name + " %{customdata[2]}<br>"
                    "came last %{customdata[3]:,} times<extra></extra>"
                ),
            )
        )
    names = [f"rank {rank.rank}{', slowest' if rank.rank == record.slowest else ''}" for rank in ranks]
    words = (
        "What each rank spends in the meetings of the shared layers: waiting for ranks that were late, and the "
        "exchange itself. The rank that others wait for has the shortest bar."
    )
    layout = _rows(names, f"{unit} per step", barmode="stack")
    return Picture("ranks", "Waiting by rank", words, go.Figure(traces, layout), "wide", 110 + ROW * len(ranks))


def before_and_after(record: Profile) -> list[Picture]:
    """The whole step, and the layers that changed; nothing where nothing was converted."""
    conversion = record.conversion
    if conversion is None:
        return []
    return [_steps(conversion), _layers(record, conversion)]


def _steps(conversion: Conversion) -> Picture:
    names = _forms(conversion)
    spreads = [conversion.before, conversion.after]
    unit, size = _unit(max(spread.high for spread in spreads))
    bars = go.Bar(
        x=names,
        y=[spread.median / size for spread in spreads],
        width=0.5,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [(spread.high - spread.median) / size for spread in spreads],
            "arrayminus": [(spread.median - spread.low) / size for spread in spreads],
            "thickness": 1.5,
        },
        customdata=[within(spread) for spread in spreads],
        hovertemplate="%{x}<br>%{customdata}<extra></extra>",
    )
    layout = arrange(
        yaxis={"title": {"text": f"{unit} per step"}, "rangemode": "tozero"},
        hovermode="closest",
        showlegend=False,
        margin={"t": 12},
    )
    words = (
        "Your whole step with its batch norms as they are and changed, in turns on the same model; the line is p20 to "
        "p80 of the steps."
    )
    return Picture("converting", "Before and after converting", words, go.Figure(bars, layout))


def _layers(record: Profile, conversion: Conversion) -> Picture:
    pairs = [(layer, times) for layer, times in _dearest(record, len(record.layers)) if layer.converted is not None]
    pairs = pairs[:MOST_BARS]
    both = [(total(times), total(layer.converted)) for layer, times in pairs if layer.converted is not None]
    unit, size = _unit(max((max(pair) for pair in both), default=0.0))
    traces = [
        go.Bar(
            y=list(range(len(pairs))),
            x=[pair[form] / size for pair in both],
            name=name,
            orientation="h",
            customdata=[
                [plain(layer.name), plain(kind(layer)), seconds(pair[form])]
                for (layer, _), pair in zip(pairs, both, strict=True)
            ],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>" + name + " %{customdata[2]}<extra></extra>",
        )
        for form, name in enumerate(_forms(conversion))
    ]
    layout = _rows([layer.name for layer, _ in pairs], f"{unit} per step, forward and backward", PAIR, barmode="group")
    return Picture(
        "converted",
        "The layers that changed",
        "Forward and backward of each changed layer together, medians.",
        go.Figure(traces, layout),
        "wide",
        110 + PAIR * len(pairs),
    )


def _forms(conversion: Conversion) -> list[str]:
    names = ["torch.nn", "wholebatch"]
    return names if conversion.way == "convert" else names[::-1]


def _dearest(record: Profile, most: int = MOST_BARS) -> list[tuple[Layer, Times]]:
    """The layers with their times on rank 0, the dearest first."""
    pairs = list(zip(record.layers, record.ranks[0].layers, strict=True))
    return sorted(pairs, key=lambda pair: -total(pair[1]))[:most]


def _rows(names: Sequence[str], title: str, height: int = ROW, **more: Any) -> dict[str, Any]:
    """The layout of horizontal bars of so many CSS pixels each, the first on top."""
    return arrange(
        xaxis={"title": {"text": title}, "rangemode": "tozero"},
        yaxis={
            "tickvals": list(range(len(names))),
            "ticktext": [_shorten(name) for name in names],
            "autorange": "reversed",
            "showgrid": False,
        },
        hovermode="closest",
        legend={"traceorder": "normal", "y": 1 + 12 / (height * len(names))},
        **more,
    )


def _shorten(name: str) -> str:
    """A layer's name without its middle: the block that it is in stands in front, and what it is at the end."""
    half = MOST_NAME // 2
    return short(name if len(name) <= MOST_NAME else f"{name[: half - 1]}…{name[-half:]}", MOST_NAME)


def _unit(most: float) -> tuple[str, float]:
    """What seconds of this size are told in."""
    return ("s", 1.0) if most >= 1 else ("ms", 1e-3) if most >= 1e-3 else ("µs", 1e-6)
