"""The pictures of the choices of synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from wholebatch.cost.digits import duration
from wholebatch.cost.drawing import LINE, PARTS, capital, faint, time_unit
from wholebatch.cost.synchronisation.record import Choice, Delay, Steps, Synchronisation, Training
from wholebatch.cost.synchronisation.summary import Parts, waiting
from wholebatch.cost.synchronisation.words import percent, who_is_late, whose
from wholebatch.pages.pictures import Picture, arrange, plain

# Told apart on a light and on a dark ground, and by people who see no red or no green (after Okabe and Ito, 2008).
COLORS: dict[Choice, str] = {"all": "#2f7fd6", "group": "#12937f", "none": "#d6336c", "late": "#d9822b"}
TITLES: dict[Delay, str] = {"none": "", "last": ", one rank held up", "changing": ", now this rank held up, now that"}
DASHES: dict[Choice, str] = {"all": "solid", "group": "dash", "none": "dot", "late": "dashdot"}


def steps(record: Synchronisation) -> list[Picture]:
    """What ranks do in a step of each choice, without and with delays; all over the same microseconds."""
    most = max(one.timing.high for one in record.steps)
    made = []
    for delay in record.delays:
        found = [one for one in record.steps if one.delay == delay]
        late, who = who_is_late(record, delay), "the others" if delay == "last" else "all ranks"
        said = (
            f"{late + ': what' if late else 'What'} a rank does in a step, the mean of {who}. The line at the top: the "
            "20th to the 80th percentile of rounds."
        )
        figure = _stacked(record, found, most)
        made.append(Picture(f"synchronisation-step-{delay}", f"A step{TITLES[delay]}", said, figure, "half", 360))
    return made


def _stacked(record: Synchronisation, found: Sequence[Steps], most: float) -> go.Figure:
    unit, scale = time_unit(most)
    parts = [waiting(one) for one in found]
    bars = []
    for name in PARTS:
        shares = [getattr(part, name) for part in parts]
        top = {"error_y": _spread(parts, scale)} if name == list(PARTS)[-1] else {}
        bars.append(
            go.Bar(
                x=[one.choice for one in found],
                y=[share * part.median / scale for share, part in zip(shares, parts, strict=True)],
                name=name,
                marker={"color": PARTS[name], "line": {"width": 0}},
                customdata=[
                    [plain(whose(record, one.choice)), duration(share * part.median), percent(share)]
                    for one, share, part in zip(found, shares, parts, strict=True)
                ],
                hovertemplate=f"%{{customdata[0]}}<br>{name}: %{{customdata[1]}}, %{{customdata[2]}}<extra></extra>",
                **top,
            )
        )
    layout = arrange(
        barmode="stack",
        bargap=0.4,
        hovermode="closest",
        xaxis={"type": "category", "showgrid": False},
        yaxis={"title": {"text": f"{unit} per step"}, "range": [0, 1.05 * most / scale]},
    )
    return go.Figure(bars, layout)


def _spread(parts: Sequence[Parts], scale: float) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [(part.high - part.median) / scale for part in parts],
        "arrayminus": [(part.median - part.low) / scale for part in parts],
        "thickness": 1.4,
        "width": 4,
        "color": LINE,
    }


def curves(record: Synchronisation) -> list[Picture]:
    """The score by epoch; by second, without and with delays."""
    name = record.score_name
    band = " The mean over the seeds, and their least and most as a band." if len(record.seeds) > 1 else ""
    made = [
        Picture(
            "synchronisation-score-epoch",
            f"{capital(name)} by epoch",
            f"The {name} of the validation rows after each epoch.{band}",
            _scores(record, "none", seconds=False),
            "wide",
            400,
        ),
        Picture(
            "synchronisation-score-second",
            f"{capital(name)} by second",
            f"The same by training time.{band}",
            _scores(record, "none", seconds=True),
            "half",
            400,
        ),
    ]
    for delay in record.delays:
        if delay == "none":
            continue
        made.append(
            Picture(
                f"synchronisation-score-second-{delay}",
                f"{capital(name)} by second{TITLES[delay]}",
                f"{who_is_late(record, delay)}; one seed.",
                _scores(record, delay, seconds=True),
                "half",
                400,
            )
        )
    return made


def _scores(record: Synchronisation, delay: Delay, *, seconds: bool) -> go.Figure:
    """One line a choice; trainings that diverged count as far as all of them went."""
    most = max(training.seconds[-1] for training in record.trainings)
    unit, scale = time_unit(most) if seconds else ("epoch", 1.0)
    traces: list[go.Scatter] = []
    for choice in record.choices:
        trainings = record.trained(choice, delay)
        if not trainings:
            continue
        x, scores = _together(trainings, seconds=seconds)
        x = x / scale
        if len(scores) > 1:
            traces.append(
                go.Scatter(
                    x=[*x, *x[::-1]],
                    y=[*scores.max(0), *scores.min(0)[::-1]],
                    fill="toself",
                    fillcolor=faint(COLORS[choice]),
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=choice,
                )
            )
        traces.append(
            go.Scatter(
                x=x,
                y=scores.mean(0),
                name=choice,
                mode="lines+markers",
                marker={"size": 5},
                line={"color": COLORS[choice], "width": 2, "dash": DASHES[choice]},
                legendgroup=choice,
                hovertemplate="%{y:.4f}",
            )
        )
    last = most / scale if seconds else record.epochs
    ticks = {} if seconds else {"dtick": -(-record.epochs // 10)}
    layout = arrange(
        xaxis={"title": {"text": unit}, "range": [0, 1.02 * last], "hoverformat": ".4~g", **ticks},
        yaxis={"title": {"text": plain(record.score_name)}, "range": _range(record)},
    )
    return go.Figure(traces, layout)


def _together(trainings: Sequence[Training], *, seconds: bool) -> tuple[np.ndarray, np.ndarray]:
    """(x, scores of each seed) after the epochs that all seeds finished; seconds are their mean."""
    count = min(len(training.scores) for training in trainings)
    scores = np.array([training.scores[:count] for training in trainings])
    if seconds:
        return np.mean([training.seconds[:count] for training in trainings], axis=0), scores
    return np.arange(count, dtype=np.float64), scores


def _range(record: Synchronisation) -> list[float]:
    """Of the axis of scores: the first epoch from chance is steep, and would flatten what matters."""
    scores = [score for training in record.trainings for score in training.scores[1:]]
    scores = scores or [score for training in record.trainings for score in training.scores]
    low, high = float(np.quantile(scores, 0.02)), max(scores)
    room = 0.06 * (high - low) or 0.01
    return [low - room, high + room]
