"""The steps in the Trace Event Format, for Perfetto or chrome://tracing.

Source: "Trace Event Format", Google: complete events (``X``, microseconds), flow events (``s``, ``f``: an arrow from
whoever came last to each who waited), and metadata (``M``: names).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wholebatch.cost.timeline.record import Meeting, Span, Step, Timeline

Event = dict[str, Any]


def events(record: Timeline) -> list[Event]:
    """Events of the step of median duration as process 0, and of the slowest as process 1."""
    return [
        event
        for process, (name, step) in enumerate((("median", record.median), ("slowest", record.slowest)))
        for event in _step(process, name, step)
    ]


def _step(process: int, name: str, step: Step) -> Iterator[Event]:
    title = f"the step of median duration ({step.index})" if name == "median" else f"the slowest step ({step.index})"
    yield _named("process_name", process, 0, title)
    for share in step.shares:
        yield _named("thread_name", process, share.thread, f"thread {share.thread}")
    for span in step.spans:
        yield _span(process, span)
    for meeting in step.meetings:
        yield from _waits(process, meeting)


def _named(what: str, process: int, thread: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _span(process: int, span: Span) -> Event:
    manner = {} if span.manner is None else {"manner": span.manner}
    return {
        "name": f"{span.kind}: {span.name}, {span.phase}",
        "cat": span.kind,
        "ph": "X",
        "pid": process,
        "tid": span.thread,
        "ts": span.start_ns / 1e3,
        "dur": span.duration_ns / 1e3,
        "args": {"layer": span.name, "phase": span.phase, **manner},
    }


def _waits(process: int, meeting: Meeting) -> Iterator[Event]:
    """An arrow from the last one's coming to each other thread, which waited for it."""
    came = meeting.arrivals_ns[meeting.last]
    for thread, late in enumerate(meeting.late_ns):
        if thread == meeting.last or not late:
            continue
        common = {
            "name": f"waited for thread {meeting.last}",
            "cat": "meeting",
            "pid": process,
            "id": f"{process}-{meeting.number}-{thread}",
            "args": {"for": meeting.purpose, "µs": late / 1e3},
        }
        yield common | {"ph": "s", "tid": meeting.last, "ts": came / 1e3}
        yield common | {"ph": "f", "bp": "e", "tid": thread, "ts": came / 1e3}
