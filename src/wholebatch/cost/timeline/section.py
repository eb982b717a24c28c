"""The timeline's section of a page."""

from __future__ import annotations

from wholebatch.cost.timeline import words
from wholebatch.cost.timeline.figures import MOST_THREADS, draw_lanes, draw_lasts, draw_waits
from wholebatch.cost.timeline.record import Timeline
from wholebatch.pages.section import Section, Shown, Tile


def describe(record: Timeline) -> Section:
    """What was found, the lanes of one step, and its meetings."""
    tables = words.tables(record)
    shown = [Shown(draw_lanes(record), tables["layers"])]
    if record.habits:
        shown.append(Shown(draw_waits(record), tables["meetings"]))
        if record.settings.threads <= MOST_THREADS:
            shown.append(Shown(draw_lasts(record), tables["threads"]))
        else:
            shown.append(Shown(None, tables["threads"]))
    else:
        shown.append(Shown(None, tables["threads"]))
    return Section(
        name="timeline",
        title="A step, thread by thread",
        answer=words.answer(record),
        shown=shown,
        notes=words.notes(record),
        tiles=_tiles(record),
    )


def _tiles(record: Timeline) -> list[Tile]:
    meetings = len(record.habits)
    met = f"of the threads' time was waiting, at {meetings} meetings" if meetings else "of the time was waiting"
    return [
        Tile(words.percent(words.share_of(record, "wait")), met),
        Tile(words.lasting(record.step_ns.median), "a step, median"),
        Tile(words.percent(words.share_of(record, "merge")), "merging moments and sums"),
        Tile(f"{record.overhead.ratio.median:.3f} ×", "a step with recording, over one without"),
    ]
