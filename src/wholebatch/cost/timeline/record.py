"""What a recording keeps of the timeline. All times are whole or broken nanoseconds, as their names say.

A step lasts from the moment at which the last thread arrived at the meeting that ended the step before, to the moment
at which the last thread arrived at the meeting that ends it. So steps follow each other without gap, and what a thread
did in a step (compute, merge, wait, injected idling) adds up to the step. What the engine calls a meeting is a barrier:
nobody leaves it before the last has come.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Phase = Literal["forward", "loss", "backward", "update"]
Kind = Literal["compute", "merge", "wait", "injected"]
Manner = Literal["spinning", "yielding", "parked", "waking"]

Count = Annotated[int, Field(ge=0)]
Nanoseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Model(BaseModel):
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid")


class Spread(Model):
    """The middle of many values, and the 20th and 80th percentile."""

    p20: float
    median: float
    p80: float


class Settings(Model):
    """What was trained, and how.

    Attributes:
        source: the table, or ``random``.
        rows: of the table.
        sizes: features of the input, of each hidden layer, of the output.
        parameters: of the net, all together.
        norm, norm_position, activation, loss, optimizer: by their names in ``wholebatch train``.
        clip: bound on the gradient's norm, or None. It adds two meetings.
        batch_size: examples of each step.
        threads: that shared it.
        cores: that the process might use.
        split: ``example``: a thread holds rows of the mini-batch; ``neuron``: columns of the layers.
        dtype: ``float32`` or ``float64``.
        seed: of the first weights, of random rows and of their order.
    """

    source: str
    rows: Count
    sizes: list[Count]
    parameters: Count
    norm: Literal["batch", "layer", "rms", "none"]
    norm_position: Literal["before", "after"]
    activation: str
    loss: str
    optimizer: str
    clip: float | None
    batch_size: Count
    threads: Annotated[int, Field(ge=1)]
    cores: Annotated[int, Field(ge=1)]
    split: Literal["example", "neuron"]
    dtype: Literal["float32", "float64"]
    seed: int


class Straggler(Model):
    """``thread``, from 0, was made to compute ``factor`` times as long: it was idle after each of its computations."""

    thread: Count
    factor: Annotated[float, Field(ge=1)]


class Clock(Model):
    """What marks were made with.

    Attributes:
        name: ``processor's counter`` or ``system's steady clock``.
        skew_ns: the longest time by which a thread's clock said that it left a meeting before the last had come, over
            all meetings: by so much the threads' clocks may disagree.
    """

    name: str
    skew_ns: Nanoseconds


class Overhead(Model):
    """What recording costs, measured in rounds: in each a burst of steps with marks and one without, in turns.

    Attributes:
        rounds, steps_per_burst: how it was measured.
        without_ns, with_ns: a step, over the rounds.
        ratio: with over without, over the rounds.
        ratio_low, ratio_high: between them lies the median ratio with a confidence of 95 %.
        mark_ns: one mark, in a loop of nothing else.
        marks_per_step: of one thread, the mean over threads and steps.
    """

    rounds: Count
    steps_per_burst: Count
    without_ns: Spread
    with_ns: Spread
    ratio: Spread
    ratio_low: float
    ratio_high: float
    mark_ns: Nanoseconds
    marks_per_step: Annotated[float, Field(ge=0)]


class Share(Model):
    """What a thread did with its time; the four add up to the time of the step, or of all steps."""

    thread: Count
    compute_ns: Count
    merge_ns: Count
    wait_ns: Count
    injected_ns: Count


class Span(Model):
    """A stretch of a thread's time in a step.

    Attributes:
        thread: from 0; thread 0 is the one that called.
        layer: from 0, the output layer last; None: of no single layer.
        name: of the layer, as it is shown.
        phase: forward, loss (the output layer, the loss, and, split by example, the way back through the output
            layer: one pass over each block of rows), backward, or update (a layer's weight gradient and its update).
        kind: what was done. wait: at a meeting.
        manner: of a wait: spinning, yielding the core, parked by the system; waking: the last to come lets the others
            go.
        start_ns: since the step began.
        duration_ns: at least 1.
    """

    thread: Count
    layer: Count | None
    name: str
    phase: Phase
    kind: Kind
    manner: Manner | None = None
    start_ns: Count
    duration_ns: Annotated[int, Field(ge=1)]


class Meeting(Model):
    """One meeting of a step.

    Attributes:
        number: from 0, within the step.
        layer, name, phase: as in :class:`Span`; backward's are those of the layer whose norm is served.
        purpose: what everyone needs from everyone there.
        last: the thread that came last.
        arrivals_ns: when each thread came, since the step began.
        late_ns: how long each waited for the last to come; 0 for the last.
        waits_ns: how long each was there: ``late_ns`` and the time it took to notice, or to be woken.
    """

    number: Count
    layer: Count | None
    name: str
    phase: Phase
    purpose: str
    last: Count
    arrivals_ns: list[int]
    late_ns: list[Count]
    waits_ns: list[Count]


class Step(Model):
    """One step as every thread lived it.

    Attributes:
        index: among the recorded steps, from 0.
        duration_ns: see the head of this module.
        spans: by thread, then by time; a thread's spans do not overlap and fill the step.
        meetings: in order; none for a single thread.
        shares: by thread.
    """

    index: Count
    duration_ns: Count
    spans: list[Span]
    meetings: list[Meeting]
    shares: list[Share]


class Habit(Model):
    """One meeting of the step over all recorded steps.

    Attributes:
        number, layer, name, phase, purpose: as in :class:`Meeting`.
        last_counts: in how many steps each thread came last.
        wait_ns: the mean over threads of a step's wait there; its spread over the steps.
    """

    number: Count
    layer: Count | None
    name: str
    phase: Phase
    purpose: str
    last_counts: list[Count]
    wait_ns: Spread


class Timeline(Model):
    """The threads of one real step of the engine, chosen among many.

    Attributes:
        settings: what was trained.
        clock: what marks were made with.
        straggler: the thread that was made slow, if any.
        overhead: what recording costs; measured without a straggler.
        steps: how many were recorded, after those that warmed up.
        step_ns: a step, over the recorded ones.
        shares: by thread, over all recorded steps.
        manners: what the threads' waiting was, over all recorded steps, in nanoseconds.
        late_ns: how much of it was for the last thread to come, over all recorded steps; the rest passed until that was
            noticed, or until the system woke who was parked and gave it a core.
        median, slowest: the steps of median and of longest duration.
        shown: which of them the console, the page and the trace begin with.
        habits: the meetings, over all recorded steps.
    """

    settings: Settings
    clock: Clock
    straggler: Straggler | None
    overhead: Overhead
    steps: Annotated[int, Field(ge=1)]
    step_ns: Spread
    shares: list[Share]
    manners: dict[Manner, Count]
    late_ns: Count
    median: Step
    slowest: Step
    shown: Literal["median", "slowest"] = "median"
    habits: list[Habit]

    @property
    def step(self) -> Step:
        """The one to show."""
        return self.median if self.shown == "median" else self.slowest
