"""The pictures of a run's report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from wholebatch.pages.pictures import Picture, arrange, plain, short
from wholebatch.runs.evaluation import Confusion, Labels, Residuals, Values
from wholebatch.runs.recording import Recording

MOST_COUNTED = 25
"""Classes up to which the numbers stand in a confusion matrix's cells; of more, they are seen on hover."""
MOST_OUTPUTS = 6
MOST_LABELS = 40


def draw(recording: Recording) -> dict[str, list[Picture]]:
    """The pictures by section: ``result`` and ``learning``."""
    evaluation = recording.evaluation
    if isinstance(evaluation, Confusion):
        result = [_confusion(evaluation)]
    elif isinstance(evaluation, Residuals):
        result = [p for i, values in enumerate(evaluation.outputs[:MOST_OUTPUTS]) for p in _residuals(values, i)]
    else:
        result = [_labels(evaluation)]
    return {"result": result, "learning": _learning(recording)}


def _learning(recording: Recording) -> list[Picture]:
    """Loss and validation score against epochs, the kept epoch marked."""
    history, epochs = recording.history, [row["epoch"] for row in recording.history]
    mode = "lines" if len(epochs) > 1 else "markers"

    def curve(key: str, name: str, **more: Any) -> go.Scatter:
        values = [row.get(key) for row in history]
        return go.Scatter(
            x=epochs,
            y=values,
            name=name,
            mode=mode,
            line_width=2,
            hovertemplate="%{y:.4f}",
            hoverlabel_namelength=-1,
            **more,
        )

    def layout(title: str) -> dict[str, Any]:
        axis = {"title": {"text": "epoch"}, "rangemode": "tozero", "hoverformat": "d"}
        made = arrange(xaxis=axis, yaxis={"title": {"text": title}})
        if recording.best_epoch is not None:
            line = {
                "type": "line",
                "x0": recording.best_epoch,
                "x1": recording.best_epoch,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
            }
            made["shapes"] = [line | {"line": {"dash": "dot", "width": 1.5}}]
            left = recording.best_epoch > 0.6 * (epochs[-1] or 1)
            note = {"x": recording.best_epoch, "yref": "paper", "y": 1, "showarrow": False, "yanchor": "bottom"}
            note |= {
                "text": f"kept: epoch {recording.best_epoch}",
                "xanchor": "right" if left else "left",
                "xshift": -5 if left else 5,
            }
            made["annotations"] = [note]
        return made

    held = any("validation_loss" in row for row in history)
    losses = [curve("loss", "training")] + ([curve("validation_loss", "validation")] if held else [])
    words = "The loss of each epoch: over its mini-batches as they were trained on" + (
        ", and over the validation rows after it." if held else "."
    )
    pictures = [Picture("loss", "Loss", words, go.Figure(losses, layout("loss")))]
    if held:
        score = curve("validation_score", f"validation {recording.score_name}", line_color=None)
        words = f"The {recording.score_name} on the validation rows after each epoch."
        figure = go.Figure([go.Scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip"), score])
        figure.update_layout(layout(recording.score_name), showlegend=False)
        pictures.append(Picture("score", recording.score_name[0].upper() + recording.score_name[1:], words, figure))
    return pictures


def _confusion(evaluation: Confusion) -> Picture:
    names, counts = evaluation.names, evaluation.counts
    places = list(range(len(names)))
    shares = [[c / max(sum(row), 1) for c in row] for row in counts]
    hover = [
        [[plain(names[i][:80]), plain(names[j][:80]), counts[i][j], sum(counts[i])] for j in places] for i in places
    ]
    counted = len(names) <= MOST_COUNTED
    heatmap = go.Heatmap(
        x=places,
        y=places,
        z=shares,
        zmin=0,
        zmax=1,
        customdata=hover,
        text=[[str(c) if c else "" for c in row] for row in counts],
        texttemplate="%{text}" if counted else None,
        hovertemplate=(
            "true: %{customdata[0]}<br>predicted: %{customdata[1]}<br>"
            "%{customdata[2]:,} of %{customdata[3]:,} rows (%{z:.1%})<extra></extra>"
        ),
        showscale=False,
        xgap=1.5 if counted else 0,
        ygap=1.5 if counted else 0,
    )
    ticks = {
        "tickvals": places,
        "ticktext": [short(n) for n in names],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "ticks": "",
        "tickfont": {"size": 12 if counted else 9},
    }
    layout = arrange(
        xaxis={**ticks, "title": {"text": "predicted"}, "side": "top"},
        yaxis={**ticks, "title": {"text": "true"}, "autorange": "reversed"},
        hovermode="closest",
        margin={"t": 8},
    )
    words = (
        "Each row holds the rows of one true class, each column what they were taken for: the diagonal is right, all "
        "else is an error. A cell's colour is its share of the true class."
    )
    if evaluation.merged:
        words += f" The {len(names) - 1} classes with most errors are shown; the last row and column are all others."
    return Picture("confusion", "Confusion matrix", words, go.Figure(heatmap, layout), "square")


def _residuals(values: Values, index: int) -> list[Picture]:
    """Predicted against true, and the histogram of what is left."""
    name = plain(textwrap.shorten(values.name, 40, placeholder="…"))
    both = [*values.shown_true, *values.shown_predicted]
    low, high = min(both), max(both)
    points = go.Scatter(
        x=values.shown_true,
        y=values.shown_predicted,
        mode="markers",
        marker={"size": 6, "opacity": 0.65},
        customdata=[p - t for t, p in zip(values.shown_true, values.shown_predicted, strict=True)],
        hovertemplate="true %{x:.5g}<br>predicted %{y:.5g}<br>residual %{customdata:.4g}<extra></extra>",
    )
    layout = arrange(
        xaxis={"title": {"text": f"true {name}"}},
        yaxis={"title": {"text": f"predicted {name}"}},
        hovermode="closest",
        showlegend=False,
        margin={"t": 10},
        shapes=[{"type": "line", "x0": low, "x1": high, "y0": low, "y1": high, "line": {"dash": "dot", "width": 1.5}}],
    )
    edges = values.residual_edges
    bars = go.Bar(
        x=[(a + b) / 2 for a, b in pairwise(edges)],
        y=values.residual_counts,
        width=[b - a for a, b in pairwise(edges)],
        customdata=[[a, b] for a, b in pairwise(edges)],
        hovertemplate="%{customdata[0]:.4g} to %{customdata[1]:.4g}<br>%{y:,} rows<extra></extra>",
        marker={"line": {"width": 0}},
    )
    bar_layout = arrange(
        xaxis={"title": {"text": "predicted − true"}},
        yaxis={"title": {"text": "rows"}},
        hovermode="closest",
        showlegend=False,
        bargap=0.06,
        margin={"t": 10},
    )
    title = f"Predicted against true: {values.name}"
    return [
        Picture(
            f"scatter-{index}",
            title,
            "On the dotted line the prediction is exact.",
            go.Figure(points, layout),
            height=380,
        ),
        Picture(
            f"residuals-{index}",
            f"Residuals: {values.name}",
            "Predicted minus true.",
            go.Figure(bars, bar_layout),
            height=380,
        ),
    ]


def _labels(evaluation: Labels) -> Picture:
    """F1, precision and recall of each label; the weakest where there are many."""
    labels = evaluation.labels
    if len(labels) > MOST_LABELS:
        labels = sorted(labels, key=lambda label: -1.0 if label.f1 is None else label.f1)[:MOST_LABELS]
    places = list(range(len(labels)))
    traces = [
        go.Scatter(
            x=[getattr(label, key) for label in labels],
            y=places,
            name=name,
            mode="markers",
            marker={"size": 11, "symbol": symbol},
            customdata=[[plain(label.name[:80]), label.rows] for label in labels],
            hovertemplate="%{customdata[0]}<br>" + name + " %{x:.3f}<br>%{customdata[1]:,} rows have it<extra></extra>",
        )
        for key, name, symbol in (
            ("f1", "F1", "circle"),
            ("precision", "precision", "diamond"),
            ("recall", "recall", "square"),
        )
    ]
    ticks: Sequence[str] = [short(label.name, 20) for label in labels]
    layout = arrange(
        xaxis={"range": [-0.02, 1.03]},
        yaxis={"tickvals": places, "ticktext": ticks, "autorange": "reversed", "zeroline": False},
        hovermode="closest",
    )
    words = (
        "How well each label is found: of those predicted, how many are right (precision); of those true, how many are "
        "found (recall); F1 is the harmonic mean of both."
    )
    if len(evaluation.labels) > MOST_LABELS:
        words += f" The {MOST_LABELS} weakest of {len(evaluation.labels)} labels are drawn."
    return Picture("labels", "Labels", words, go.Figure(traces, layout), "wide", 90 + 34 * len(labels))
