"""Pictures of pages as plotly figures. The reader's browser chooses a light or a dark template.

plotly.js reads text as a small HTML of its own (``<b>``, ``<a href>``), so every string from outside goes through
:func:`plain`, which leaves nothing but characters; hover templates are fixed and take values from ``customdata``.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

MOST_TICK = 14


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows in words, and its shape: ``wide``, ``half`` or ``square``; ``height`` in CSS pixels."""

    name: str
    title: str
    words: str
    figure: go.Figure
    shape: str = "half"
    height: int = 320

    def as_json(self) -> Any:
        """The plotly.js form: ``data`` and ``layout``, as plain values."""
        value = json.loads(self.figure.to_json())
        value["layout"].pop("template", None)
        return value


def plain(text: str) -> str:
    """``text`` so that plotly.js shows it as it is: no tags, no entities, no formula between dollar signs."""
    return html.escape(" ".join(text.split()), quote=False).replace("$", "&#36;")


def short(text: str, most: int = MOST_TICK) -> str:
    """The same for an axis, cut to ``most`` characters."""
    text = " ".join(text.split())
    return plain(text if len(text) <= most else text[: most - 1] + "…")


def templates() -> dict[str, Any]:
    """``light`` and ``dark``: plotly.js templates."""
    light = _template(
        *(
            "#1f2430",
            "#5b6472",
            "#e3e6eb",
            "#ffffff",
            ["#2563c9", "#c2570c", "#0d7a5f"],
            "#f3f5f8",
            "#d3e2fa",
            "#184a9e",
        )
    )
    dark = _template(
        *(
            "#e8eaee",
            "#a2abb8",
            "#323a46",
            "#1a1f27",
            ["#7fb0ff", "#ffab6b", "#5fd0ac"],
            "#212832",
            "#2b4368",
            "#9cc3ff",
        )
    )
    return {"light": light, "dark": dark}


def _template(
    text: str, faint: str, grid: str, surface: str, colors: list[str], empty: str, tint: str, strong: str
) -> dict[str, Any]:
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": grid,
        "tickcolor": grid,
        "tickfont": {"color": faint},
        "title": {"font": {"color": faint, "size": 12.5}},
    }
    return {
        "layout": {
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12.5, "color": text},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": colors,
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": surface, "bordercolor": grid, "font": {"color": text}, "align": "left"},
            "legend": {"font": {"color": text}},
            "annotationdefaults": {"font": {"color": faint}},
            "shapedefaults": {"line": {"color": faint}},
        },
        "data": {
            "bar": [{"type": "bar", "error_x": {"color": faint}, "error_y": {"color": faint}}],
            # A share of 2 % is an error that should be seen, so the scale leaves the surface early.
            "heatmap": [{"type": "heatmap", "colorscale": [[0, empty], [0.0001, tint], [1, strong]]}],
        },
    }


def arrange(**more: Any) -> dict[str, Any]:
    """The layout of every figure, with ``more`` in it: what is a dictionary on both sides is merged."""
    base: dict[str, Any] = {
        "autosize": True,
        "margin": {"l": 8, "r": 14, "t": 48, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.09, "yanchor": "bottom"},
        "hovermode": "x unified",
        "xaxis": {"automargin": True},
        "yaxis": {"automargin": True},
        "dragmode": False,
    }
    for name, value in more.items():
        base[name] = {**base[name], **value} if isinstance(base.get(name), dict) else value
    return base
