"""The engine's timeline: it changes no bit, fills each thread's time, and tells who came last and who waited."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from wholebatch import FeedForward, kernels, runs
from wholebatch.cost.recording import Recording, here
from wholebatch.cost.timeline import trace, words
from wholebatch.cost.timeline.console import tell
from wholebatch.cost.timeline.lanes import Lanes
from wholebatch.cost.timeline.measuring import measure
from wholebatch.cost.timeline.problem import Wanted, make
from wholebatch.cost.timeline.record import Meeting, Span, Step, Timeline
from wholebatch.cost.timeline.section import describe
from wholebatch.feedforward.data import prepare
from wholebatch.feedforward.recording import Delay, Doing, Marks, RecordingEngine, Stage
from wholebatch.feedforward.settings import Loss, Optimizer

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part is missing here")

NORMS = ("batch", "layer", "rms", "none")


def wanted(*, delay: Delay | None = None, steps: int = 20, **settings: Any) -> Wanted:
    defaults: dict[str, Any] = {"hidden": (48, 32), "batch_size": 300, "threads": 2, "label_smoothing": 0.0}
    run = runs.Settings(table="random", target=("class",), dropout=0.0, **defaults | settings)
    return Wanted(run, features=20, steps=steps, delay=delay, overhead_seconds=0.05)


def record(steps: int = 20, **more: Any) -> Lanes:
    """The lanes of a run without what is measured around it."""
    problem = make(wanted(steps=steps, **{k: v for k, v in more.items() if k != "delay"}))
    order, offsets = problem.batches(steps + 1, 0)
    rates = np.full(steps + 1, 1e-3)
    _, marks = problem.engine.run_steps(problem.data, order, offsets, rates, record=True, delay=more.get("delay"))
    return Lanes(marks, problem.settings, 1)


@pytest.mark.parametrize("split", ["example", "neuron"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marks_and_a_straggler_change_no_bit(norm: str, split: Any, dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1100, 13)), random.integers(0, 3, 1100)
    found = []
    for how in ({}, {"record": True}, {"record": True, "delay": Delay(1, 4.0)}):
        torch.manual_seed(0)
        net = FeedForward(13, (33, 17), 3, norm=norm, dropout=0.2, dtype=dtype)
        loss = Loss("cross_entropy", alpha=0.01)
        data = prepare(x, y, None, net.architecture, loss, dtype)
        engine = RecordingEngine(net, loss, Optimizer("adam", max_grad_norm=0.5), n_threads=3, split=split)
        # The last mini-batch is tall: the gradients of the weights are summed in groups.
        offsets = np.array([0, 50, 100, 1100])
        seconds, marks = engine.run_steps(data, np.arange(1100), offsets, np.full(3, 0.01), **how)  # type: ignore[arg-type]
        assert seconds > 0
        assert len(marks) == (3 if how else 0)
        found.append(net.state_dict())
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@pytest.mark.parametrize("split", ["example", "neuron"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_threads_spans_fill_the_step_and_do_not_overlap(norm: str, split: str, clip: float | None) -> None:
    lanes = record(norm=norm, split=split, clip=clip, threads=3)
    steps = [lanes.step(index) for index in range(20)]
    for step in steps:
        for thread in range(3):
            at = 0
            for span in (span for span in step.spans if span.thread == thread):
                assert span.start_ns == at
                at += span.duration_ns
            assert at == step.duration_ns
            share = step.shares[thread]
            assert share.compute_ns + share.merge_ns + share.wait_ns + share.injected_ns == step.duration_ns
            assert share.compute_ns > 0
    assert sum(step.duration_ns for step in steps) == lanes.durations.sum()
    assert sum(share.wait_ns for step in steps for share in step.shares) == sum(lanes.manners().values())


# Meetings of a step of two hidden layers, by hand from the drawing in native/step.cpp: forward 2, backward 2, before
# the first layer's gradient 1, update 1. Without batch norm nobody waits forward, and without any the first layer's
# gradient needs nobody. By neuron all wait forward and for the loss; row norms wait twice a layer; no dZ is shared.
MEETINGS = {
    ("batch", "example"): 6,
    ("layer", "example"): 4,
    ("rms", "example"): 4,
    ("none", "example"): 3,
    ("batch", "neuron"): 6,
    ("layer", "neuron"): 8,
    ("rms", "neuron"): 8,
    ("none", "neuron"): 6,
}


@pytest.mark.parametrize(("norm", "split"), MEETINGS)
def test_every_thread_is_at_every_meeting(norm: str, split: str) -> None:
    lanes = record(norm=norm, split=split, threads=3)
    met = lanes.meetings
    assert met.last.size == 21 * MEETINGS[norm, split]
    assert lanes.skew == 0 or lanes.skew < 1e6  # else the clocks are not one: a millisecond is a thousand meetings
    came = np.take_along_axis(met.arrive, met.last[None], axis=0)[0]
    assert (met.arrive <= met.leave).all()
    assert (np.diff(came) > 0).all()
    for meeting, habit in zip(lanes.step(3).meetings, lanes.habits(), strict=True):
        assert (meeting.name, meeting.phase, meeting.purpose) == (habit.name, habit.phase, habit.purpose)
        assert meeting.late_ns[meeting.last] == 0
        assert sum(habit.last_counts) == 20
        assert all(late <= wait + lanes.skew for late, wait in zip(meeting.late_ns, meeting.waits_ns, strict=True))


def test_clipping_adds_two_meetings() -> None:
    assert record(clip=1.0).meetings.last.size == record().meetings.last.size + 2 * 21


def test_the_others_wait_as_long_as_a_straggler_is_held_up() -> None:
    lanes = record(40, delay=Delay(1, 5.0), split="neuron", hidden=(128, 128), threads=2)
    other, slow = lanes.shares()
    # Five times as long is four times idle; a tick is rounded off at each of at most 16 computations a step.
    assert slow.injected_ns >= 4 * slow.compute_ns - 40 * 16
    assert other.injected_ns == 0
    # Nobody passes a meeting before the slow thread has come: what the other is faster by, it waits.
    busy = slow.compute_ns + slow.merge_ns + slow.injected_ns
    assert other.wait_ns >= busy - (other.compute_ns + other.merge_ns)
    # By neuron each thread has half of the columns, and nobody takes any over: the slow one is last most of the time.
    met = lanes.meetings
    assert (met.last == 1).mean() > 0.5
    # All the time by which the slow thread is behind at meetings where it is last is waited by the other.
    behind = np.where(met.last == 1, met.arrive[1] - met.arrive[0], 0)
    waited = met.leave[0] - met.arrive[0]
    assert (waited + lanes.skew >= behind).all()


def test_one_thread_waits_for_nobody() -> None:
    timeline = measure(wanted(threads=1, steps=5))
    assert timeline.habits == [] == timeline.median.meetings
    assert sum(timeline.manners.values()) == 0
    assert "waits for nobody" in words.answer(timeline)[0]
    assert describe(timeline).shown[0].picture is not None
    assert {event["ph"] for event in trace.events(timeline)} == {"M", "X"}


def test_a_whole_measurement_is_kept_and_told(tmp_path: Any) -> None:
    lines: list[str] = []
    timeline = measure(wanted(threads=6, steps=9, delay=Delay(5, 2.0)), lines.append)
    assert len(lines) == 2
    assert timeline.steps == 9
    assert timeline.median.duration_ns <= timeline.slowest.duration_ns
    assert timeline.median.duration_ns == pytest.approx(
        timeline.step_ns.median, abs=1
    )  # 9 steps have one in the middle
    assert timeline.overhead.ratio_low <= timeline.overhead.ratio.median <= timeline.overhead.ratio_high
    assert timeline.overhead.mark_ns > 0
    # 6 meetings of at least one mark, 8 computations, 4 merges.
    assert timeline.overhead.marks_per_step >= 18
    path = tmp_path / "recording.json"
    Recording(origin=here(), timeline=timeline).save(path)
    again = Timeline.model_validate(json.loads(path.read_text())["timeline"])
    assert again == timeline
    assert len(tell(again)) >= 4
    sentences = " ".join(words.answer(again))
    assert "Thread 5 was made to compute 2 times as long" in sentences


def test_meetings_are_read_from_marks() -> None:
    """Two threads, a step to warm up and one that counts; thread 1 comes last and the other yields, then parks."""
    one = [
        (0, 0, 0, Doing.BEGIN, Stage.FORWARD),
        (100, 0, 0, Doing.COMPUTE, Stage.UPDATE),
        (130, 0, -1, Doing.SPINNING, Stage.UPDATE),
        (300, 1, 0, Doing.COMPUTE, Stage.FORWARD),
        (310, 1, 0, Doing.SPINNING, Stage.FORWARD),
        (350, 1, 0, Doing.YIELDING, Stage.FORWARD),
        (480, 1, 0, Doing.PARKED, Stage.FORWARD),
        (490, 1, 0, Doing.MERGE, Stage.FORWARD),
        (600, 1, 0, Doing.COMPUTE, Stage.UPDATE),
        (602, 1, -1, Doing.WAKING, Stage.UPDATE),
    ]
    other = [
        (0, 0, 0, Doing.BEGIN, Stage.FORWARD),
        (120, 0, 0, Doing.COMPUTE, Stage.UPDATE),
        (125, 0, -1, Doing.WAKING, Stage.UPDATE),
        (200, 1, 0, Doing.COMPUTE, Stage.FORWARD),
        (450, 1, 0, Doing.INJECTED, Stage.FORWARD),
        (455, 1, 0, Doing.WAKING, Stage.FORWARD),
        (470, 1, 0, Doing.MERGE, Stage.FORWARD),
        (580, 1, 0, Doing.COMPUTE, Stage.UPDATE),
        (640, 1, -1, Doing.SPINNING, Stage.UPDATE),
    ]
    marks = [Marks(*np.array([[*map(int, row)] for row in lane]).T) for lane in (one, other)]
    settings = make(wanted()).settings
    lanes = Lanes(marks, settings, 1)
    assert lanes.durations.tolist() == [480]  # from thread 1's coming at 120 to thread 0's at 600
    step: Step = lanes.step(0)
    first = {"layer": 0, "name": "hidden layer 1", "phase": "forward", "purpose": "moments of the mini-batch"}
    last = {"layer": None, "name": "whole net", "phase": "update", "purpose": "updated weights"}
    assert step.meetings == [
        Meeting(number=0, **first, last=1, arrivals_ns=[180, 330], late_ns=[150, 0], waits_ns=[180, 5]),
        Meeting(number=1, **last, last=0, arrivals_ns=[480, 460], late_ns=[0, 20], waits_ns=[2, 60]),
    ]
    assert [share.model_dump() for share in step.shares] == [
        {"thread": 0, "compute_ns": 280, "merge_ns": 10, "wait_ns": 190, "injected_ns": 0},
        {"thread": 1, "compute_ns": 185, "merge_ns": 15, "wait_ns": 30, "injected_ns": 250},
    ]
    assert lanes.manners() == {"spinning": 40, "yielding": 40, "parked": 130, "waking": 10}
    assert lanes.late() == 150 + 20
    assert lanes.skew == 0
    wait = {"thread": 0, "layer": 0, "name": "hidden layer 1", "phase": "forward", "kind": "wait"}
    assert [span for span in step.spans if span.manner == "parked"] == [
        Span(**wait, manner="parked", start_ns=230, duration_ns=130)
    ]


def test_the_trace_has_a_lane_a_thread_and_arrows_to_those_who_waited() -> None:
    timeline = measure(wanted(steps=7, delay=Delay(0, 3.0)))
    events = json.loads(json.dumps(trace.events(timeline), allow_nan=False))
    for process, step in enumerate((timeline.median, timeline.slowest)):
        own = [event for event in events if event["pid"] == process]
        spans = [event for event in own if event["ph"] == "X"]
        assert len(spans) == len(step.spans)
        assert sum(event["dur"] for event in spans) == pytest.approx(2 * step.duration_ns / 1e3)
        assert [e["args"]["name"] for e in own if e["name"] == "thread_name"] == ["thread 0", "thread 1"]
        begun, ended = ({e["id"] for e in own if e["ph"] == phase} for phase in "sf")
        assert begun == ended
        assert len(begun) == sum(late > 0 for meeting in step.meetings for late in meeting.late_ns)


def test_the_pictures_show_what_is_in_the_record() -> None:
    timeline = measure(wanted(steps=7, delay=Delay(1, 3.0)))
    lanes, waits, lasts = (shown.picture for shown in describe(timeline).shown)
    assert lanes is not None
    assert waits is not None
    assert lasts is not None
    data = lanes.as_json()["data"]
    assert [trace["name"] for trace in data] == ["compute", "wait", "merge", "being let go", "made slow", "came last"]
    drawn = sum(np.sum(lanes.figure.data[i].x) for i in range(5))
    assert drawn == pytest.approx(2 * timeline.median.duration_ns / 1e3)
    late = sum(sum(meeting.late_ns) for meeting in timeline.median.meetings)
    assert np.sum(lanes.figure.data[1].x) == pytest.approx(late / 1e3)
    assert list(waits.figure.data[0].x) == [habit.wait_ns.median / 1e3 for habit in timeline.habits]
    assert np.sum([bars.x for bars in lasts.figure.data], axis=0) == pytest.approx(np.ones(6))


@pytest.mark.parametrize(
    ("delay", "said"),
    [
        (Delay(2, 3.0), "threads 0 to 1"),
        (Delay(-1, 3.0), "thread -1"),
        (Delay(1, 0.5), "0.5"),
        (Delay(1, 101.0), "100"),
    ],
)
def test_a_delay_that_cannot_be_is_refused(delay: Delay, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure(wanted(delay=delay))


def test_a_delay_needs_marks() -> None:
    problem = make(wanted())
    order, offsets = problem.batches(2, 0)
    with pytest.raises(ValueError, match="record=True"):
        problem.engine.run_steps(problem.data, order, offsets, np.full(2, 1e-3), delay=Delay(0, 2.0))
