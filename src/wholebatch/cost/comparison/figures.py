"""The pictures of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from wholebatch.cost.comparison.claim import place
from wholebatch.cost.comparison.norms import SHORT, words
from wholebatch.cost.comparison.record import Comparison, Contender, EngineName, NormName, Run
from wholebatch.cost.comparison.summary import Summary, missed, summarise
from wholebatch.cost.digits import duration
from wholebatch.cost.drawing import LINE, capital, channels, faint, time_unit
from wholebatch.pages.pictures import Picture, arrange, plain

# Told apart on a light and on a dark ground, and by people who see no red or no green (after Okabe and Ito, 2008).
COLORS: dict[NormName, str] = {
    "batch": "#2f7fd6",
    "batch-after": "#35a5b5",
    "layer": "#d9822b",
    "rms": "#b562b0",
    "none": "#8490a0",
}
DASHES: dict[NormName, str] = {"batch": "solid", "batch-after": "dash", "layer": "solid", "rms": "dash", "none": "dot"}


def engines_of(record: Comparison) -> list[EngineName]:
    """The engines, each once, in order."""
    return list(dict.fromkeys(contender.engine for contender in record.contenders))


def time_per_step(record: Comparison) -> Picture:
    """Bars with p20 to p80, by norm and engine."""
    unit, scale = time_unit(max(c.timing.high for c in record.contenders))
    bars = []
    for engine in engines_of(record):
        those = [c for c in record.contenders if c.engine == engine]
        over = {c.norm: c for c in record.claims if c.engine == engine}
        bars.append(
            _bars(
                engine,
                [c.norm for c in those],
                [c.timing.median / scale for c in those],
                [(c.timing.median - c.timing.low) / scale for c in those],
                [(c.timing.high - c.timing.median) / scale for c in those],
                [f"{over[c.norm].ratio:.2f} ×" if c.norm in over else "" for c in those],
                [_step_hover(c) for c in those],
            )
        )
    words_ = "The median of interleaved rounds, and the 20th to the 80th percentile as a line"
    words_ += "; the number on a bar is its ratio to no norm on the same engine." if record.claims else "."
    layout = _bar_layout(record, f"{unit} per step")
    return Picture("comparison-step", "Time per step", words_, go.Figure([*_keys(record), *bars], layout), "wide", 380)


def to_target(record: Comparison) -> list[Picture]:
    """Bars of steps and of time to the target, with the range over seeds; none where nobody reached it."""
    summaries = summarise(record)
    if record.target.score is None or all(summary.steps[0] is None for summary in summaries):
        return []
    unit, scale = time_unit(max((s.seconds[2] or s.seconds[0] or 0.0 for s in summaries), default=0.0))
    target = f"a validation {record.score_name} of {record.target.score:g}"
    several = " Median over the seeds, and their range as a line." if len(record.seeds) > 1 else ""
    made = []
    for name, title, axis, attribute, size, said in (
        ("comparison-steps", "Steps to the target", "steps", "steps", 1.0, f"Steps until {target}."),
        (
            "comparison-time",
            "Time to the target",
            unit,
            "seconds",
            scale,
            f"Training time until {target}; evaluations are not counted.",
        ),
    ):
        bars = [
            _target_bars(record, engine, [s for s in summaries if s.contender.engine == engine], attribute, size)
            for engine in engines_of(record)
        ]
        layout = _bar_layout(record, axis)
        made.append(Picture(name, title, said + several, go.Figure([*_keys(record), *bars], layout), "half", 380))
    return made


def learning(record: Comparison) -> list[Picture]:
    """The validation score by step, and the best so far by second on each engine over the same seconds."""
    engines = engines_of(record)
    low = _floor(record)
    other = f" Taken on {place(engines[0])}; the other engine's differ by rounding." if len(engines) > 1 else ""
    band = " The mean over the seeds, and their 20th to 80th percentile as a band." if len(record.seeds) > 1 else ""
    name = record.score_name
    made = [
        Picture(
            "comparison-score-step",
            f"{capital(name)} by step",
            f"The {name} of the validation rows.{band}{other}",
            _curves(record, engines[0], low, float(record.steps), seconds=False),
            "wide",
            400,
        )
    ]
    most = max((run.seconds[-1] for run in record.runs), default=1.0) or 1.0
    for engine in engines:
        said = f"The best {name} so far against training time on {place(engine)}."
        if len(engines) > 1:
            said += " Both pictures by second have the same axes."
        made.append(
            Picture(
                f"comparison-score-second-{engine}",
                f"Best {name} by second: {place(engine)}",
                said,
                _curves(record, engine, low, most, seconds=True),
                "half" if len(engines) > 1 else "wide",
                400,
            )
        )
    return made


def _target_bars(
    record: Comparison, engine: EngineName, summaries: Sequence[Summary], attribute: str, scale: float
) -> go.Bar:
    spreads = [getattr(s, attribute) for s in summaries]
    several = len(record.seeds) > 1
    heights = [None if s[0] is None else s[0] / scale for s in spreads]
    down = [(s[0] - s[1]) / scale if several and s[0] is not None else None for s in spreads]
    up = [(s[2] - s[0]) / scale if several and s[0] is not None and s[2] is not None else None for s in spreads]
    return _bars(
        engine,
        [s.contender.norm for s in summaries],
        [0.0 if height is None else height for height in heights],
        down,
        up,
        ["not reached" if height is None else "" for height in heights],
        [_target_hover(s, record, attribute) for s in summaries],
    )


def _bars(
    engine: EngineName,
    norms: Sequence[NormName],
    heights: Sequence[float],
    down: Sequence[float | None],
    up: Sequence[float | None],
    text: Sequence[str],
    hover: Sequence[str],
) -> go.Bar:
    """One engine's bars; a text that stands for a missing bar is turned, for it is longer than a bar is wide."""
    missing = [height == 0 for height in heights]
    return go.Bar(
        x=[SHORT[norm] for norm in norms],
        y=heights,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": up,
            "arrayminus": down,
            "thickness": 1.4,
            "width": 4,
            "color": LINE,
        },
        marker={"color": [_shade(COLORS[norm], engine) for norm in norms], "line": {"width": 0}},
        text=text,
        textposition=["outside" if gone else "inside" for gone in missing],
        insidetextanchor="start",
        constraintext="none" if any(missing) else "both",
        outsidetextfont={"size": 12},
        insidetextfont={"color": "#ffffff" if engine == "wholebatch" else "#1f2430"},
        textangle=-90 if any(missing) else 0,
        cliponaxis=False,
        offsetgroup=engine,
        showlegend=False,
        customdata=[[plain(words(norm)), said] for norm, said in zip(norms, hover, strict=True)],
        hovertemplate=f"%{{customdata[0]}}, {place(engine)}<br>%{{customdata[1]}}<extra></extra>",
    )


def _keys(record: Comparison) -> list[go.Bar]:
    """The legend of bars: a shade for each engine, of no norm's colour."""
    return [
        go.Bar(x=[None], y=[None], name=place(e), offsetgroup=e, marker={"color": _shade(COLORS["none"], e)})
        for e in engines_of(record)
    ]


def _shade(color: str, engine: EngineName) -> str:
    """The colour itself for this project's engine, a tint of it for torch's; both opaque, for both themes."""
    if engine == "wholebatch":
        return color
    mixed = (round(0.45 * part + 0.55 * 255) for part in channels(color))
    return f"rgb({','.join(map(str, mixed))})"


def _bar_layout(record: Comparison, axis: str) -> dict[str, Any]:
    return arrange(
        barmode="group",
        bargap=0.28,
        bargroupgap=0.06,
        hovermode="closest",
        xaxis={"type": "category", "showgrid": False},
        yaxis={"title": {"text": axis}, "rangemode": "tozero"},
        showlegend=len(engines_of(record)) > 1,
    )


def _step_hover(contender: Contender) -> str:
    timing = contender.timing
    threads = f"{contender.threads} thread{'s' if contender.threads > 1 else ''}"
    spread = f"{duration(timing.low)} to {duration(timing.high)}"
    return f"{duration(timing.median)} ({spread})<br>{threads}, {plain(contender.how)}"


def _target_hover(summary: Summary, record: Comparison, attribute: str) -> str:
    middle, least, most = getattr(summary, attribute)
    show = duration if attribute == "seconds" else lambda value: f"{value:,g} steps"
    if middle is None:
        return missed(summary, record)
    if summary.seeds == 1:
        return show(middle)
    return f"{show(middle)}<br>seeds: {show(least)} to {show(most) if most is not None else 'not reached'}"


def _curves(record: Comparison, engine: EngineName, low: float, most: float, *, seconds: bool) -> go.Figure:
    """One line a norm: the mean over seeds, with a band from their 20th to their 80th percentile."""
    unit, scale = time_unit(most) if seconds else ("step", 1.0)
    traces: list[go.Scatter] = []
    for contender in record.contenders:
        if contender.engine != engine:
            continue
        x, scores = _together(record.of(contender), seconds=seconds)
        x, color = x / scale, COLORS[contender.norm]
        bottom, top = np.quantile(scores, [0.2, 0.8], axis=0)
        if len(scores) > 1:
            traces.append(
                go.Scatter(
                    x=[*x, *x[::-1]],
                    y=[*top, *bottom[::-1]],
                    fill="toself",
                    fillcolor=faint(color),
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=contender.norm,
                )
            )
        traces.append(
            go.Scatter(
                x=x,
                y=scores.mean(0),
                name=SHORT[contender.norm],
                mode="lines" if len(x) > 1 else "markers",
                line={"color": color, "width": 2, "dash": DASHES[contender.norm]},
                legendgroup=contender.norm,
                hovertemplate="%{y:.4f}",
                hoverlabel_namelength=-1,
            )
        )
    highest = max(max(run.scores) for run in record.runs)
    target = record.target.score
    if target is not None and highest < target <= highest + (highest - low):  # one that is near is shown
        highest = target
    room = 0.06 * (highest - low) or 0.01
    layout = arrange(
        xaxis={"title": {"text": unit}, "range": [0, most / scale], "hoverformat": ".4~g"},
        yaxis={"title": {"text": plain(record.score_name)}, "range": [low - room, highest + room]},
    )
    if target is not None and target <= highest:
        y = target
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y}
        layout["shapes"] = [line | {"line": {"dash": "dot", "width": 1.5}}]
        note = {"xref": "paper", "x": 0, "y": y, "text": f"target {y:g}", "showarrow": False}
        layout["annotations"] = [note | {"xanchor": "left", "yanchor": "bottom"}]
    return go.Figure(traces, layout)


def _together(runs: Sequence[Run], *, seconds: bool) -> tuple[np.ndarray, np.ndarray]:
    """(x, scores of each seed) over the evaluations that all seeds have; by seconds, which are the mean over the seeds,
    it is the best score so far."""
    count = min(len(run.steps) for run in runs)
    scores = np.array([run.scores[:count] for run in runs])
    if seconds:
        return np.mean([run.seconds[:count] for run in runs], axis=0), np.maximum.accumulate(scores, axis=1)
    return np.array(runs[0].steps[:count], dtype=np.float64), scores


def _floor(record: Comparison) -> float:
    """Where the axis of scores begins: the first steps from chance are steep, and would flatten what matters."""
    later = [score for run in record.runs for score in run.scores[max(1, len(run.scores) // 12) :]]
    everything = later or [score for run in record.runs for score in run.scores]
    low = float(np.quantile(everything, 0.02))
    target = record.target.score
    return low if target is None else min(low, target)
