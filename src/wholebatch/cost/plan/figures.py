"""The pictures of the plan."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from wholebatch.cost.drawing import PARTS
from wholebatch.cost.plan.record import Check, Forecast, Plan, Synchronisation
from wholebatch.cost.plan.words import WHOSE, duration, percent
from wholebatch.pages.pictures import Picture, arrange

# Told apart on a light and on a dark ground, and by people who see no red or no green (after Okabe and Ito, 2008).
FILLS = {"compute": "rgba(47,127,214,0.45)", "wait": "rgba(217,130,43,0.45)", "exchange": "rgba(143,107,184,0.6)"}
LINES: dict[Synchronisation, str] = {"groups": "#12937f", "none": "#d6336c"}
MARKS = {"measured": "#8490a0", "predicted": "#2f7fd6", "told": "#d9822b"}


def steps(record: Plan) -> Picture:
    """A step by workers: compute, wait and exchange with batch norm over all; lines for groups and none."""
    whole = record.of("all")
    scale, unit = _unit(max(one.mean_us for one in record.forecasts))
    parts = {
        "compute": [one.compute_us for one in whole],
        "wait": [one.wait_us for one in whole],
        "exchange": [one.exchange_us for one in whole],
    }
    traces: list[Any] = [
        go.Scatter(
            x=[one.workers for one in whole],
            y=[value / scale for value in values],
            name=name,
            mode="lines" if len(whole) > 1 else "markers",
            stackgroup="all",
            line={"width": 0.5, "color": PARTS[name]},
            fillcolor=FILLS[name],
            customdata=[duration(value) for value in values],
            hovertemplate="%{customdata}",
        )
        for name, values in parts.items()
    ]
    synchronisations: tuple[Synchronisation, ...] = ("groups", "none")
    for synchronisation in synchronisations:
        found = record.of(synchronisation)
        if not found:
            continue
        traces.append(
            go.Scatter(
                x=[one.workers for one in found],
                y=[one.mean_us / scale for one in found],
                name="a step, groups" if synchronisation == "groups" else "a step, each alone",
                mode="lines+markers",
                line={
                    "width": 2,
                    "color": LINES[synchronisation],
                    "dash": "dash" if synchronisation == "groups" else "dot",
                },
                customdata=[duration(one.mean_us) for one in found],
                hovertemplate="%{customdata}",
            )
        )
    words = (
        f"Filled: what a worker does in a step with batch norm over {WHOSE['all']}, the means stacked to the whole "
        "step. Lines: the step with batch norm over groups, and over each worker alone."
    )
    layout = arrange(xaxis=_workers_axis(whole), yaxis={"title": {"text": f"{unit} per step"}, "rangemode": "tozero"})
    return Picture("plan-steps", "A step by workers", words, go.Figure(traces, layout), "wide", 420)


def wait_shares(record: Plan) -> Picture:
    """The share of a step that a worker waits, by workers and by whose moments are taken."""
    colors = {"all": PARTS["wait"], **LINES}
    synchronisations: tuple[Synchronisation, ...] = ("all", "groups", "none")
    traces = [
        go.Scatter(
            x=[one.workers for one in found],
            y=[one.wait_share for one in found],
            name=WHOSE[synchronisation],
            mode="lines+markers",
            line={"width": 2, "color": colors[synchronisation]},
            hovertemplate="%{y:.1%}",
        )
        for synchronisation in synchronisations
        if (found := record.of(synchronisation))
    ]
    layout = arrange(
        xaxis=_workers_axis(record.of("all")),
        yaxis={"title": {"text": "share of a step"}, "tickformat": ".0%", "rangemode": "tozero"},
    )
    words = (
        "How much of a step a worker waits for slower ones, by whose moments batch norm takes. The sum of gradients "
    )
    words += "makes everyone wait once a step in any case."
    return Picture("plan-wait", "Waiting", words, go.Figure(traces, layout), "half", 360)


def checked(check: Check) -> Picture:
    """Measured steps with their spread, and what was predicted for them."""
    scale, unit = _unit(max(max(line.p80_us, line.predicted_us, line.told_us) for line in check.lines))
    places = list(range(len(check.lines)))
    measured = go.Bar(
        x=places,
        y=[line.median_us / scale for line in check.lines],
        name="measured",
        marker={"color": MARKS["measured"]},
        error_y={
            "type": "data",
            "array": [(line.p80_us - line.median_us) / scale for line in check.lines],
            "arrayminus": [(line.median_us - line.p20_us) / scale for line in check.lines],
            "thickness": 1.5,
        },
        customdata=[[duration(line.median_us), duration(line.p20_us), duration(line.p80_us)] for line in check.lines],
        hovertemplate="%{customdata[0]} (%{customdata[1]} to %{customdata[2]})",
    )
    predictions = [
        ("predicted", "circle", [(line.predicted_us, line.error_percent) for line in check.lines]),
        ("told", "diamond", [(line.told_us, line.told_error_percent) for line in check.lines]),
    ]
    points = [
        go.Scatter(
            x=places,
            y=[value / scale for value, _ in values],
            name="predicted" if name == "predicted" else "predicted, told the compute",
            mode="markers",
            marker={"symbol": symbol, "size": 11, "color": MARKS[name], "line": {"width": 1, "color": "#ffffff"}},
            customdata=[[duration(value), percent(error)] for value, error in values],
            hovertemplate="%{customdata[0]} (%{customdata[1]})",
        )
        for name, symbol, values in predictions
    ]
    ticks = {
        "tickvals": places,
        "ticktext": [
            f"{line.workers} ranks,<br>{'all' if line.synchronisation == 'all' else 'each alone'}"
            for line in check.lines
        ],
        "fixedrange": True,
    }
    layout = arrange(
        xaxis=ticks, yaxis={"title": {"text": f"{unit} per step"}, "rangemode": "tozero"}, margin={"t": 64}
    )
    words = (
        "Steps of real ranks on this host: the median and from the 20th to the 80th percentile as a line. Circles: "
        "predicted from one rank alone. Diamonds: predicted when told what the ranks computed in those steps."
    )
    return Picture("plan-check", "Predicted and measured", words, go.Figure([measured, *points], layout), "half", 360)


def _workers_axis(forecasts: list[Forecast]) -> dict[str, Any]:
    numbers = [one.workers for one in forecasts]
    shown = numbers if len(numbers) <= 7 else numbers[:: -(-len(numbers) // 6)]
    return {
        "type": "log",
        "title": {"text": "workers"},
        "tickvals": shown,
        "ticktext": [f"{number:,}" for number in shown],
        "hoverformat": ",d",
    }


def _unit(most_us: float) -> tuple[float, str]:
    """Microseconds that make one, and its name."""
    return (1e6, "s") if most_us >= 1e6 else (1e3, "ms") if most_us >= 1e3 else (1.0, "µs")
