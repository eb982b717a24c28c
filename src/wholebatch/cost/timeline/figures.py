"""The pictures of a timeline: the threads as lanes over time, and the meetings."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative

from wholebatch.cost.timeline.record import Habit, Kind, Span, Step, Timeline
from wholebatch.pages.pictures import Picture, arrange, plain

# In the order of the templates' colours: blue, orange, green.
KINDS: tuple[tuple[Kind, str], ...] = (("compute", "compute"), ("wait", "wait"), ("merge", "merge"))
IDLE = {"color": "rgba(128,136,150,0.35)", "pattern": {"shape": "/", "size": 6, "solidity": 0.25}}
FREED = {"color": "rgba(224,140,66,0.42)"}
EDGE = {"width": 0.6, "color": "rgba(128,136,150,0.7)"}
THREAD_COLORS = qualitative.Safe  # also for those who do not tell all colours apart
MOST_THREADS = len(THREAD_COLORS)
"""Up to which the threads are told apart by colour."""


def draw_lanes(record: Timeline) -> Picture:
    """A step: each thread a lane, each stretch of its time a bar, and a triangle where the last one came."""
    step, threads = record.step, record.settings.threads
    spans, freed = _split(step)
    traces = [_bars([s for s in spans if s.kind == kind], name, {"line": EDGE}) for kind, name in KINDS]
    if freed:
        traces.append(_bars(freed, "being let go", FREED | {"line": EDGE}))
    idle = [span for span in step.spans if span.kind == "injected"]
    if idle:
        traces.append(_bars(idle, "made slow", IDLE | {"line": EDGE}))
    if step.meetings:
        traces.append(_latecomers(step))
    lines = [
        {
            "type": "line",
            "x0": max(meeting.arrivals_ns) / 1e3,
            "x1": max(meeting.arrivals_ns) / 1e3,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"dash": "dot", "width": 1},
        }
        for meeting in step.meetings
    ]
    layout = arrange(
        xaxis={
            "title": {"text": "µs since the step began"},
            "rangemode": "tozero",
            "zeroline": False,
            "tickformat": ",",
        },
        yaxis={"type": "category", "categoryarray": _lanes(threads), "autorange": "reversed", "showgrid": False},
        hovermode="closest",
        barmode="overlay",
        bargap=0.25,
        shapes=lines,
    )
    words = (
        "Each thread is a lane. At a dotted line all have come to a meeting; the triangle marks who came last. The "
        "orange before it is the others' waiting for that thread; the paler rest passed until they noticed, or "
        "until the system woke them and gave them a core."
        if step.meetings
        else "One thread does all, and waits for nobody."
    )
    title = f"One step: {'the slowest' if record.shown == 'slowest' else 'that of median duration'}"
    return Picture("lanes", title, words, go.Figure(traces, layout), "wide", 150 + 38 * threads)


def draw_waits(record: Timeline) -> Picture:
    """The wait at each meeting, over all steps."""
    names = [_meeting(habit) for habit in record.habits]
    medians = [habit.wait_ns.median / 1e3 for habit in record.habits]
    bars = go.Bar(
        x=medians,
        y=names,
        orientation="h",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [(h.wait_ns.p80 - h.wait_ns.median) / 1e3 for h in record.habits],
            "arrayminus": [(h.wait_ns.median - h.wait_ns.p20) / 1e3 for h in record.habits],
            "thickness": 1.4,
            "color": "rgba(128,136,150,0.95)",
        },
        customdata=[[plain(h.purpose), h.wait_ns.p20 / 1e3, h.wait_ns.p80 / 1e3] for h in record.habits],
        hovertemplate="%{y}<br>for: %{customdata[0]}<br>%{x:.1f} µs a thread<br>"
        "p20 %{customdata[1]:.1f}, p80 %{customdata[2]:.1f} µs<extra></extra>",
        marker={"line": {"width": 0}},
    )
    layout = arrange(
        xaxis={"title": {"text": "µs a thread waited, mean"}, "rangemode": "tozero", "tickformat": ","},
        yaxis={"type": "category", "categoryarray": names, "autorange": "reversed"},
        hovermode="closest",
        showlegend=False,
        margin={"t": 8},
    )
    words = "The median over all recorded steps; the line goes from the 20th to the 80th percentile."
    return Picture("waits", "Waiting by layer", words, go.Figure(bars, layout), "wide", _height(names))


def draw_lasts(record: Timeline) -> Picture:
    """Who came last at each meeting, over all steps."""
    names = [_meeting(habit) for habit in record.habits]
    traces = [
        go.Bar(
            x=[habit.last_counts[thread] / record.steps for habit in record.habits],
            y=names,
            orientation="h",
            name=f"thread {thread}",
            customdata=[habit.last_counts[thread] for habit in record.habits],
            hovertemplate=f"%{{y}}<br>thread {thread} came last in %{{customdata:,}} steps (%{{x:.0%}})<extra></extra>",
            marker={"line": EDGE, "color": THREAD_COLORS[thread]},
        )
        for thread in range(record.settings.threads)
    ]
    layout = arrange(
        xaxis={"title": {"text": "share of the steps"}, "tickformat": ".0%", "range": [0, 1]},
        yaxis={"type": "category", "categoryarray": names, "autorange": "reversed"},
        hovermode="closest",
        barmode="stack",
        legend={"traceorder": "normal"},
    )
    words = "A thread that is last everywhere holds the others up; where everyone is last in turn, nobody does."
    return Picture("lasts", "Who came last", words, go.Figure(traces, layout), "wide", _height(names))


def _split(step: Step) -> tuple[list[Span], list[Span]]:
    """The spans, waits cut off where the last thread came; and what of the waits was after that."""
    spans, freed = [], []
    for span in step.spans:
        if span.kind != "wait":
            spans.append(span)
            continue
        begin, end = span.start_ns, span.start_ns + span.duration_ns
        own = (
            m.arrivals_ns[m.last]
            for m in step.meetings
            if m.arrivals_ns[span.thread] <= begin < m.arrivals_ns[span.thread] + m.waits_ns[span.thread]
        )
        came = min(max(next(own, begin), begin), end)  # none: it leaves the last meeting of the step before
        if came > begin:
            spans.append(span.model_copy(update={"duration_ns": came - begin}))
        if end > came:
            freed.append(span.model_copy(update={"start_ns": came, "duration_ns": end - came}))
    return spans, freed


def _bars(spans: list[Span], name: str, marker: Any) -> go.Bar:
    return go.Bar(
        x=[span.duration_ns / 1e3 for span in spans],
        base=[span.start_ns / 1e3 for span in spans],
        y=[_lane(span.thread) for span in spans],
        orientation="h",
        name=name,
        # plotly.js would show where a bar with a base ends, not how long it is
        customdata=[
            [
                plain(span.name),
                span.phase,
                f", {span.manner}" if span.manner else "",
                span.start_ns / 1e3,
                span.duration_ns / 1e3,
            ]
            for span in spans
        ],
        hovertemplate="%{y}: " + name + "%{customdata[2]}<br>%{customdata[0]}, %{customdata[1]}<br>"
        "%{customdata[4]:,.2f} µs, from %{customdata[3]:,.1f} µs on<extra></extra>",
        marker=marker,
    )


def _latecomers(step: Step) -> go.Scatter:
    return go.Scatter(
        x=[meeting.arrivals_ns[meeting.last] / 1e3 for meeting in step.meetings],
        y=[_lane(meeting.last) for meeting in step.meetings],
        name="came last",
        mode="markers",
        marker={"symbol": "triangle-down", "size": 10, "color": "#d1335b", "line": {"width": 1, "color": "#ffffff"}},
        customdata=[
            [plain(meeting.name), meeting.phase, sum(meeting.late_ns) / max(len(meeting.late_ns) - 1, 1) / 1e3]
            for meeting in step.meetings
        ],
        hovertemplate="%{y} came last<br>%{customdata[0]}, %{customdata[1]}<br>"
        "the others waited %{customdata[2]:.1f} µs for it (mean)<extra></extra>",
    )


def _lane(thread: int) -> str:
    return f"thread {thread}"


def _lanes(threads: int) -> list[str]:
    return [_lane(thread) for thread in range(threads)]


def _meeting(habit: Habit) -> str:
    return f"{habit.number + 1} {plain(habit.name)}, {habit.phase}"


def _height(names: list[str]) -> int:
    return 130 + 30 * len(names)
