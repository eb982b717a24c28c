"""The study's figures: losses and accuracies by step and by second, as SVG where a browser is there, and as a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.study_cases import WAYS
from benchmarks.study_runs import Run, chosen_runs
from benchmarks.study_tables import label
from wholebatch import files

# Told apart by people who see colours differently (Okabe and Ito), and by dashes.
COLORS = {
    "undivided": "#000000",
    "lockstep": "#D55E00",
    "plain-8": "#0072B2",
    "plain-4": "#56B4E9",
    "plain-2": "#CC79A7",
    "plain-8-sorted": "#0072B2",
    "lockstep-sorted": "#D55E00",
    "group": "#009E73",
}
WIDTH, HEIGHT = 1000, 720  # CSS pixels
MEASURES = {"validation_loss": "validation loss", "validation_accuracy": "validation accuracy"}
AXES = {"steps": "step", "seconds": "second of training"}


def draw(net: str, runs: Sequence[Run]) -> go.Figure:
    """Each way at its own best learning rate: means over the seeds, from the lowest to the highest shaded."""
    figure = make_subplots(rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.12)
    for name, way in WAYS.items():
        chosen = chosen_runs(runs, net, name)
        for row, measure in enumerate(MEASURES, 1):
            for column, axis in enumerate(AXES, 1):
                if chosen:
                    dash = "dot" if way.sorted else "dash" if name == "lockstep" else "solid"
                    for trace in _traces(chosen, measure, axis, name, dash):
                        trace.showlegend = trace.showlegend and row == column == 1
                        figure.add_trace(trace, row, column)
    for row, words in enumerate(MEASURES.values(), 1):
        figure.update_yaxes(title_text=words, row=row, col=1)
    figure.update_yaxes(tickformat=".0%", row=2)
    for column, words in enumerate(AXES.values(), 1):
        figure.update_xaxes(title_text=words, row=2, col=column)
    figure.update_xaxes(type="log", col=2)
    figure.update_layout(
        template="plotly_white",
        title=f"{net}: steps of 64 examples, each way at its own best learning rate",
        legend={"orientation": "h", "y": -0.1, "yanchor": "top"},
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 60, "r": 20, "t": 50, "b": 20},
    )
    return figure


def _traces(chosen: Sequence[Run], measure: str, axis: str, name: str, dash: str) -> list[go.Scatter]:
    """The band from lowest to highest, and the mean; the beginning is left out, as no time has passed there."""
    across = [statistics.fmean(values) for values in zip(*(run[axis] for run in chosen), strict=True)][1:]
    found = [[v for v in values if v is not None] for values in zip(*(run[measure] for run in chosen), strict=True)][1:]
    points = [(x, min(v), statistics.fmean(v), max(v)) for x, v in zip(across, found, strict=True) if v]
    xs, low, middle, high = ([point[i] for point in points] for i in range(4))
    shown = {"legendgroup": name, "hoverinfo": "skip", "showlegend": False, "line": {"width": 0}, "mode": "lines"}
    color = COLORS[name]
    faint = f"rgba({int(color[1:3], 16)},{int(color[3:5], 16)},{int(color[5:], 16)},0.12)"
    return [
        go.Scatter(x=xs, y=low, **shown),
        go.Scatter(x=xs, y=high, fill="tonexty", fillcolor=faint, **shown),
        go.Scatter(
            x=xs,
            y=middle,
            mode="lines",
            name=label(WAYS[name]),
            legendgroup=name,
            showlegend=True,
            line={"color": color, "dash": dash, "width": 2},
        ),
    ]


def write_page(path: Path, figures: Sequence[go.Figure]) -> None:
    """One page that needs nothing from elsewhere."""
    parts = [figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(figures)]
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Micro-batches</title></head><body>'
    files.write(path, "\n".join([head, *parts, "</body></html>"]))


def write_pictures(folder: Path, figures: dict[str, go.Figure]) -> str:
    """An SVG of each, by plotly's own exporter; returns why there is none, else an empty text."""
    try:
        for name, figure in figures.items():
            files.write(folder / f"{name}.svg", figure.to_image(format="svg"))
    except (ImportError, RuntimeError, ValueError) as error:  # kaleido, or the browser that it drives, is not there
        return " ".join(str(error).split())[:200]
    return ""
