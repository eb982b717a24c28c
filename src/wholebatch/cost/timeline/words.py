"""What was found, in sentences and tables: for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Iterable

from wholebatch.cost.timeline.record import Kind, Manner, Meeting, Phase, Step, Timeline
from wholebatch.pages.section import Cell, Table

BAR = 0.02
"""Of a step: recording is to cost less."""
MANNERS: dict[Manner, str] = {
    "spinning": "spinning",
    "yielding": "yielding the core",
    "parked": "parked by the system",
    "waking": "letting the others go",
}
SHOWN = {"median": "The step of median duration", "slowest": "The slowest step"}
PHASES: tuple[Phase, ...] = ("forward", "loss", "backward", "update")


def lasting(nanoseconds: float) -> str:
    """Three digits, with a unit."""
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if nanoseconds >= 0.9995 * factor:
            value = nanoseconds / factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{nanoseconds:.0f} ns"


def percent(share: float) -> str:
    """``12 %``; small ones with two digits."""
    return f"{share:.0%}".replace("%", " %") if share >= 0.0995 else f"{100 * share:.2g} %"


def share_of(record: Timeline | Step, kind: Kind) -> float:
    """What part of the threads' time was this, in one step or in all."""
    whole = sum(s.compute_ns + s.merge_ns + s.wait_ns + s.injected_ns for s in record.shares)
    part: int = sum(getattr(share, f"{kind}_ns") for share in record.shares)
    return part / max(whole, 1)


def answer(record: Timeline) -> list[str]:
    """What was found; the first sentence is a full answer."""
    settings, step = record.settings, record.step
    took = f"a step of {lasting(record.step_ns.median)} (median of {record.steps:,})"
    if not record.habits:
        return [
            f"A single thread waits for nobody: {took} had no meeting, and {percent(share_of(record, 'merge'))} of it "
            "went into merging the blocks' moments and sums.",
            _overhead(record),
        ]
    most = max(record.habits, key=lambda habit: habit.wait_ns.median)
    usual = max(range(settings.threads), key=lambda thread: most.last_counts[thread])
    sentences = [
        f"Of {took} on {settings.threads} threads, {percent(share_of(record, 'wait'))} was waiting at its "
        f"{len(record.habits)} meetings: most at {most.name}, {most.phase} ({lasting(most.wait_ns.median)} a thread), "
        f"where thread {usual} came last in {percent(most.last_counts[usual] / record.steps)} of the steps.",
        f"Computing took {percent(share_of(record, 'compute'))} of the threads' time, and merging moments and sums "
        f"{percent(share_of(record, 'merge'))}.",
        _manner(record),
        _lateness(record),
    ]
    if record.straggler is not None:
        sentences.append(_straggling(record))
    return [*sentences, *_dearest(step), _overhead(record)]


def notes(record: Timeline) -> list[str]:
    """How it was measured, and what is doubtful."""
    settings, overhead = record.settings, record.overhead
    found = [
        f"The steps follow each other in one run of the engine on {settings.source} ({settings.rows:,} rows), after "
        "some that warmed up. A step lasts from the moment at which the last thread had come to the meeting that ended "
        "the step before, to that of its own last meeting.",
        f"Clock: the {record.clock.name}; no thread left a meeting before the last had come by more than "
        f"{lasting(record.clock.skew_ns)}. Every mark is written into memory of the thread's own: "
        f"{overhead.marks_per_step:.0f} marks of {lasting(overhead.mark_ns)} for a thread and step.",
        "Merging is that of the norm's moments and sums; sums of weight gradients over groups of rows count as "
        "computing. Waiting is all time at a meeting: until the last came, and until that was noticed, or, where the "
        "thread was parked, until the system woke it. To let the others go counts as waiting too.",
    ]
    if settings.split == "example":
        found.append(
            "Split by example, the output layer, the loss and the way back through the output layer are one pass over "
            "each block of rows while it is in cache: all of it is called loss. Blocks are dealt out, and a thread "
            "that is done takes some of another's where a meeting stands before and after."
        )
    if settings.threads > settings.cores:
        found.append(
            f"{settings.threads} threads shared {settings.cores} cores: much of the waiting is for a core, not for one "
            "another."
        )
    if record.straggler is not None:
        found.append(
            "The slow thread is idle after each of its computations, as if its core were slow; nobody takes over its "
            "rows while it is, as between machines. No number that is computed changes. What recording costs was "
            "measured without it."
        )
    return found


def tables(record: Timeline) -> dict[str, Table]:
    """``layers``, ``meetings`` (where there are any) and ``threads``: of the step shown, and of all."""
    found = {"layers": _layers(record), "threads": _threads(record)}
    return found | ({"meetings": _meetings(record)} if record.habits else {})


def _manner(record: Timeline) -> str:
    """How it was waited; and what it means where letting the others go took most of it."""
    whole = max(sum(record.manners.values()), 1)
    parts = ((percent(record.manners[manner] / whole), text) for manner, text in MANNERS.items())
    told = f"It was waited {', '.join(f'{share} {text}' for share, text in parts)}."
    if record.manners["waking"] <= whole / 2:
        return told
    return (
        f"{told} Whoever let the others go mostly lost its core to those it woke: threads took turns on one core, for "
        "other work held the rest, or the system did not move them there."
    )


def _lateness(record: Timeline) -> str:
    whole = max(sum(record.manners.values()), 1)
    step = record.step
    waits, late = (sum(sum(getattr(m, name)) for m in step.meetings) for name in ("waits_ns", "late_ns"))
    return (
        f"{percent(record.late_ns / whole)} of the waiting was for the last thread to come; the rest passed until that "
        "was noticed, or until the system woke who was parked and gave it a core. "
        f"{SHOWN[record.shown]} took {lasting(step.duration_ns)}, and there it was {percent(late / max(waits, 1))}."
    )


def _straggling(record: Timeline) -> str:
    assert record.straggler is not None
    slow, meetings = record.straggler.thread, record.step.meetings
    caused = [meeting for meeting in meetings if meeting.last == slow]
    others = max(record.settings.threads - 1, 1)
    waited = sum(sum(meeting.late_ns) for meeting in caused) / others
    idle = record.step.shares[slow].injected_ns
    return (
        f"Thread {slow} was made to compute {record.straggler.factor:g} times as long ({lasting(idle)} of idling in "
        f"the step shown): it came last at {len(caused)} of the {len(meetings)} meetings, and each of the others "
        f"waited {lasting(waited)} for it."
    )


def _dearest(step: Step) -> list[str]:
    """The meeting of a step that was waited at most, with names."""
    most = max(step.meetings, key=lambda meeting: sum(meeting.late_ns))
    if not sum(most.late_ns):
        return []
    waits = [f"thread {t} {lasting(late)}" for t, late in enumerate(most.late_ns) if t != most.last]
    named = ", ".join(waits[:8]) + (f" and {len(waits) - 8} more" if len(waits) > 8 else "")
    return [f"The longest wait in it was for thread {most.last} at {most.name}, {most.phase}: {named}."]


def _overhead(record: Timeline) -> str:
    overhead = record.overhead
    ratio, own = overhead.ratio, overhead.marks_per_step * overhead.mark_ns / max(overhead.without_ns.median, 1)
    low, high = overhead.ratio_low, overhead.ratio_high
    if high - 1 < BAR and own < BAR:
        verdict = f"below the bar of {percent(BAR)}"
    elif low - 1 > BAR or own > BAR:
        verdict = f"above the bar of {percent(BAR)}"
    else:
        verdict = f"the rounds were too uneven to tell whether they are below the bar of {percent(BAR)}"
    return (
        f"Recording made a step {ratio.median:.3f} times as long (median of {overhead.rounds} rounds with and without; "
        f"with 95 % confidence {low:.3f} to {high:.3f}; p20 {ratio.p20:.3f}, p80 {ratio.p80:.3f}). Its marks alone "
        f"take {percent(own)} of a step: {verdict}."
    )


def _layers(record: Timeline) -> Table:
    """Compute, merge and wait of the step shown, by layer and phase."""
    step, threads = record.step, record.settings.threads
    rows: list[list[Cell]] = []
    keys = sorted(
        {(span.layer if span.layer is not None else len(record.settings.sizes), span.name) for span in step.spans}
    )
    for _, name in keys:
        for phase in PHASES:
            spans = [span for span in step.spans if span.name == name and span.phase == phase]
            if not spans:
                continue
            took = {
                kind: sum(span.duration_ns for span in spans if span.kind == kind) / threads / 1e3
                for kind in ("compute", "merge", "wait", "injected")
            }
            last = [f"thread {m.last}" for m in step.meetings if m.name == name and m.phase == phase]
            cells: list[Cell] = [name, phase, took["compute"], took["merge"], took["wait"]]
            rows.append(
                [*cells, *([took["injected"]] if record.straggler is not None else []), ", ".join(last) or None]
            )
    injected = ["injected, µs"] if record.straggler is not None else []
    heads = ["layer", "phase", "compute, µs", "merge, µs", "wait, µs", *injected, "came last"]
    return Table(f"{SHOWN[record.shown]} by layer: means over its threads", heads, rows)


def _meetings(record: Timeline) -> Table:
    rows: list[list[Cell]] = []
    for habit, meeting in zip(record.habits, record.step.meetings, strict=True):
        usual = max(range(record.settings.threads), key=lambda thread: habit.last_counts[thread])
        rows.append(
            [
                f"{habit.number + 1}",
                habit.name,
                habit.phase,
                habit.purpose,
                f"thread {meeting.last}",
                _mean_late(meeting) / 1e3,
                habit.wait_ns.median / 1e3,
                habit.wait_ns.p80 / 1e3,
                f"thread {usual}: {percent(habit.last_counts[usual] / record.steps)}",
            ]
        )
    heads = [
        *("meeting", "layer", "phase", "for", "came last", "others waited for it, µs"),
        *("all steps: wait, µs", "p80, µs", "most often last"),
    ]
    return Table("The meetings: of the step shown, and over all steps (waits are means over threads)", heads, rows)


def _mean_late(meeting: Meeting) -> float:
    return sum(meeting.late_ns) / max(len(meeting.late_ns) - 1, 1)


def _threads(record: Timeline) -> Table:
    lasts = [sum(habit.last_counts[thread] for habit in record.habits) for thread in range(record.settings.threads)]
    met = record.steps * len(record.habits)
    injected = record.straggler is not None
    rows: list[list[Cell]] = []
    for share, overall, last in zip(record.step.shares, record.shares, lasts, strict=True):
        whole = overall.compute_ns + overall.merge_ns + overall.wait_ns + overall.injected_ns
        rows.append(
            [
                f"thread {share.thread}",
                *_microseconds((share.compute_ns, share.merge_ns, share.wait_ns)),
                *(_microseconds((share.injected_ns,)) if injected else []),
                percent(overall.wait_ns / max(whole, 1)),
                percent(last / met) if met else None,
            ]
        )
    heads = ["thread", "compute, µs", "merge, µs", "wait, µs", *(["injected, µs"] if injected else [])]
    return Table(
        f"The threads in {SHOWN[record.shown].lower()}, and over all {record.steps:,} steps",
        [*heads, "all steps: waiting", "came last"],
        rows,
    )


def _microseconds(values: Iterable[int]) -> list[float]:
    return [value / 1e3 for value in values]
