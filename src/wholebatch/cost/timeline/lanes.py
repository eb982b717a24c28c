"""From the threads' marks to steps: what each thread did in each of them, and who came last at each meeting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from wholebatch.cost.digits import middle
from wholebatch.cost.timeline.labels import KINDS, MANNERS, PHASES, layer_name, purpose
from wholebatch.cost.timeline.record import Habit, Kind, Manner, Meeting, Settings, Share, Span, Spread, Step
from wholebatch.feedforward.recording import Doing, Marks, Stage


@dataclass(frozen=True)
class Meetings:
    """All meetings of a run, in order: ``stage``, ``layer``, ``step``, ``last`` are ``(meetings,)`` int64.

    ``arrive`` and ``leave`` are ``(threads, meetings)`` int64, in nanoseconds since the run began.
    """

    step: np.ndarray
    stage: np.ndarray
    layer: np.ndarray
    last: np.ndarray
    arrive: np.ndarray
    leave: np.ndarray


class Lanes:
    """The marks of all threads in one run, of which the first ``warm`` steps (at least 1) are left out.

    Args:
        marks: by thread.
        settings: what was run: it gives layers and meetings their names.
        warm: the step before the first one says when that began.
    """

    def __init__(self, marks: Sequence[Marks], settings: Settings, warm: int) -> None:
        assert warm >= 1
        self.marks, self.settings, self.warm = marks, settings, warm
        self.ends = np.max([_ends(lane) for lane in marks], axis=0)  # of each step, in nanoseconds

    @property
    def durations(self) -> np.ndarray:
        """``(steps,)`` int64, of the steps that count."""
        durations: np.ndarray = np.diff(self.ends[self.warm - 1 :])
        return durations

    @cached_property
    def meetings(self) -> Meetings:
        """Those of all steps, the warm ones too."""
        found = [_meetings(lane) for lane in self.marks]
        keys = found[0][0]
        for thread, (others, _, _, _) in enumerate(found):
            assert np.array_equal(keys, others), f"thread {thread} was at other meetings than thread 0"
        arrive, leave, woke = (np.stack([each[i] for each in found]) for i in (1, 2, 3))
        assert (woke.sum(axis=0) == 1).all(), "a meeting that not exactly one thread came last to"
        step, stage, layer = keys
        return Meetings(step, stage, layer, woke.argmax(axis=0), arrive, leave)

    @property
    def skew(self) -> int:
        """Nanoseconds: see :class:`wholebatch.cost.timeline.record.Clock`."""
        met = self.meetings
        if not met.last.size:
            return 0
        came = np.take_along_axis(met.arrive, met.last[None], axis=0)
        return max(0, int((came - met.leave).max()))

    def step(self, index: int) -> Step:
        """The step ``index`` of those that count."""
        begin, end = (int(t) for t in self.ends[self.warm - 1 + index : self.warm + 1 + index])
        spans = [span for thread in range(len(self.marks)) for span in self._spans(thread, begin, end)]
        return Step(
            index=index,
            duration_ns=end - begin,
            spans=spans,
            meetings=self._meetings(index, begin),
            shares=[self._share(thread, begin, end) for thread in range(len(self.marks))],
        )

    def shares(self) -> list[Share]:
        """By thread, over all steps that count."""
        begin, end = int(self.ends[self.warm - 1]), int(self.ends[-1])
        return [self._share(thread, begin, end) for thread in range(len(self.marks))]

    def manners(self) -> dict[Manner, int]:
        """Nanoseconds of each way of waiting, all threads together, over all steps that count."""
        totals: dict[Manner, int] = dict.fromkeys(MANNERS.values(), 0)
        for lane in self.marks:
            starts, stops = _cut(lane, int(self.ends[self.warm - 1]), int(self.ends[-1]))
            for doing, manner in MANNERS.items():
                totals[manner] += int((stops - starts)[lane.doing[1:] == doing].sum())
        return totals

    def late(self) -> int:
        """Nanoseconds of waiting for the last thread to come, all threads together, over all steps that count."""
        met = self.meetings
        came = np.take_along_axis(met.arrive, met.last[None], axis=0)
        return int(np.maximum(came - met.arrive, 0)[:, met.step >= self.warm].sum())

    def habits(self) -> list[Habit]:
        """Each meeting of a step, over all steps that count."""
        met = self.meetings
        counted = met.step >= self.warm
        steps = len(self.durations)
        each = int(counted.sum()) // steps
        shape = steps, each
        last = met.last[counted].reshape(shape)
        waits = (met.leave - met.arrive).mean(axis=0)[counted].reshape(shape)
        return [
            Habit(
                number=number,
                **self._label(int(met.stage[counted][number]), int(met.layer[counted][number])),
                last_counts=np.bincount(last[:, number], minlength=len(self.marks)).tolist(),
                wait_ns=spread(waits[:, number]),
            )
            for number in range(each)
        ]

    def _label(self, stage: int, layer: int) -> dict[str, Any]:
        return {
            "layer": None if layer < 0 else layer,
            "name": layer_name(layer, self.settings.sizes),
            "phase": PHASES[Stage(stage)],
            "purpose": purpose(Stage(stage), self.settings),
        }

    def _meetings(self, index: int, begin: int) -> list[Meeting]:
        met = self.meetings
        made = []
        for number, at in enumerate(np.flatnonzero(met.step == self.warm + index)):
            arrive, leave, last = met.arrive[:, at], met.leave[:, at], int(met.last[at])
            made.append(
                Meeting(
                    number=number,
                    **self._label(int(met.stage[at]), int(met.layer[at])),
                    last=last,
                    arrivals_ns=(arrive - begin).tolist(),
                    late_ns=np.maximum(arrive[last] - arrive, 0).tolist(),
                    waits_ns=(leave - arrive).tolist(),
                )
            )
        return made

    def _spans(self, thread: int, begin: int, end: int) -> list[Span]:
        lane, found = self.marks[thread], []
        starts, stops = _cut(lane, begin, end)
        for i in np.flatnonzero(stops > starts):
            mark = i + 1  # a mark tells of the time before it
            doing, layer = Doing(lane.doing[mark]), int(lane.layer[mark])
            found.append(
                Span(
                    thread=thread,
                    layer=None if layer < 0 else layer,
                    name=layer_name(layer, self.settings.sizes),
                    phase=PHASES[Stage(lane.stage[mark])],
                    kind=KINDS[doing],
                    manner=MANNERS.get(doing),
                    start_ns=int(starts[i]) - begin,
                    duration_ns=int(stops[i] - starts[i]),
                )
            )
        return found

    def _share(self, thread: int, begin: int, end: int) -> Share:
        lane = self.marks[thread]
        starts, stops = _cut(lane, begin, end)
        totals: dict[Kind, int] = dict.fromkeys(KINDS.values(), 0)
        for doing, kind in KINDS.items():
            totals[kind] += int((stops - starts)[lane.doing[1:] == doing].sum())
        return Share(thread=thread, **{f"{kind}_ns": total for kind, total in totals.items()})


def spread(values: np.ndarray) -> Spread:
    """Median, 20th and 80th percentile."""
    low, median, high = middle(values)
    return Spread(p20=low, median=median, p80=high)


def _cut(lane: Marks, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The thread's stretches between two moments: where each starts and stops; outside, it stops where it starts."""
    return np.clip(lane.nanoseconds[:-1], begin, end), np.clip(lane.nanoseconds[1:], begin, end)


def _waits(lane: Marks) -> np.ndarray:
    return lane.doing >= Doing.SPINNING


def _ends(lane: Marks) -> np.ndarray:
    """When the thread had done each step: its last mark that is no wait."""
    done = np.flatnonzero(~_waits(lane))
    steps = lane.step[done]
    last = np.searchsorted(steps, np.arange(steps[-1] + 1), side="right") - 1
    ends: np.ndarray = lane.nanoseconds[done[last]]
    return ends


def _meetings(lane: Marks) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(step, stage and layer of each meeting; when the thread came; when it left; whether it was the last)."""
    at = np.flatnonzero(_waits(lane))
    keys = np.stack([lane.step[at], lane.stage[at], lane.layer[at]])
    new = np.ones(at.size, dtype=bool)
    new[1:] = (np.diff(at) > 1) | (np.diff(keys) != 0).any(axis=0)
    first = np.flatnonzero(new)
    final = np.append(first[1:], at.size)[: first.size] - 1  # of none where there are none
    arrive, leave = lane.nanoseconds[at[first] - 1], lane.nanoseconds[at[final]]
    return keys[:, first], arrive, leave, lane.doing[at[final]] == Doing.WAKING
