"""Runs the steps: some to warm up, rounds with and without marks, and then those that are recorded."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.stats

from wholebatch.cost.timeline.lanes import Lanes, spread
from wholebatch.cost.timeline.problem import Problem, Wanted, make
from wholebatch.cost.timeline.record import Clock, Overhead, Settings, Straggler, Timeline
from wholebatch.feedforward.recording import Delay, Marks
from wholebatch.kernels import native_module

WARM_STEPS = 8
"""Before the recorded ones, in the same run: threads awake, buffers and table in cache."""
BURST_SECONDS = 0.01
"""Waking the threads for a run takes about 50 µs of it."""
LEAST_ROUNDS, MOST_ROUNDS = 7, 300
MOST_BURST_STEPS = 2000
COUNTED_MARKS = 100_000

Tell = Callable[[str], None]


def measure(wanted: Wanted, tell: Tell = lambda _: None) -> Timeline:
    """Train ``wanted.steps`` steps and record what each thread does.

    Args:
        tell: is told what is done now, in a line, and how long it will take.

    Raises:
        ValueError: see :func:`wholebatch.cost.timeline.problem.make`; a loss that is not finite.
        KeyboardInterrupt: Ctrl-C.
    """
    problem = make(wanted)
    settings = problem.settings
    runner = _Runner(problem)
    warm = runner.run(WARM_STEPS)[0]
    runner.run(max(1, min(WARM_STEPS, math.ceil(0.1 / warm))))
    each = runner.run(WARM_STEPS)[0] / WARM_STEPS
    burst = min(MOST_BURST_STEPS, max(1, math.ceil(BURST_SECONDS / each)))
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(wanted.overhead_seconds / (2 * burst * each))))
    duration = _about(each, rounds * 2 * burst)
    tell(f"measuring what recording costs: {rounds} rounds of {burst} steps with and without, {duration}")
    overhead = _overhead(runner, rounds, burst)
    factor = 1.0 if wanted.delay is None else wanted.delay.factor
    tell(f"recording {wanted.steps:,} steps, {_about(each * factor, wanted.steps + WARM_STEPS)}")
    _, marks = runner.run(wanted.steps + WARM_STEPS, record=True, delay=wanted.delay)
    return _assemble(wanted, settings, overhead, Lanes(marks, settings, WARM_STEPS))


class _Runner:
    """Steps of one net, epoch after epoch."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._epoch = problem, 0

    def run(self, steps: int, *, record: bool = False, delay: Delay | None = None) -> tuple[float, list[Marks]]:
        """Seconds for so many steps, and the threads' marks."""
        problem = self._problem
        order, offsets = problem.batches(steps, self._epoch)
        self._epoch += steps
        rates = np.full(steps, problem.engine.optimizer.learning_rate)
        return problem.engine.run_steps(problem.data, order, offsets, rates, record=record, delay=delay)


def _overhead(runner: _Runner, rounds: int, burst: int) -> Overhead:
    """Bursts with marks and without, in turns, who is first changing from round to round."""
    nanoseconds: dict[bool, list[float]] = {True: [], False: []}
    marks: list[Marks] = []
    for number in range(rounds):
        for record in (True, False) if number % 2 else (False, True):
            seconds, made = runner.run(burst, record=record)
            nanoseconds[record].append(seconds / burst * 1e9)
            marks = made or marks
    without, recorded = np.array(nanoseconds[False]), np.array(nanoseconds[True])
    low, high = _median_interval(recorded / without)
    return Overhead(
        rounds=rounds,
        steps_per_burst=burst,
        without_ns=spread(without),
        with_ns=spread(recorded),
        ratio=spread(recorded / without),
        ratio_low=low,
        ratio_high=high,
        mark_ns=min(native_module().mark_cost(COUNTED_MARKS) for _ in range(3)),
        marks_per_step=sum(lane.step.size for lane in marks) / (len(marks) * burst),
    )


def _median_interval(values: np.ndarray) -> tuple[float, float]:
    """The order statistics between which the median lies with a confidence of at least 95 %.

    Each value is above the median or below it with equal chance, whatever the distribution (the sign test).
    """
    ordered = np.sort(values)
    outside = max(1, int(scipy.stats.binom.ppf(0.025, len(ordered), 0.5)))
    return float(ordered[outside - 1]), float(ordered[-outside])


def _assemble(wanted: Wanted, settings: Settings, overhead: Overhead, lanes: Lanes) -> Timeline:
    durations = lanes.durations
    by_length = np.argsort(durations, kind="stable")
    delay = wanted.delay
    return Timeline(
        settings=settings,
        clock=Clock(
            name="processor's counter" if native_module().has_counter() else "system's steady clock",
            skew_ns=lanes.skew,
        ),
        straggler=None if delay is None else Straggler(thread=delay.thread, factor=delay.factor),
        overhead=overhead,
        steps=len(durations),
        step_ns=spread(durations),
        shares=lanes.shares(),
        manners=lanes.manners(),
        late_ns=lanes.late(),
        median=lanes.step(int(by_length[(len(durations) - 1) // 2])),
        slowest=lanes.step(int(by_length[-1])),
        shown=wanted.shown,
        habits=lanes.habits(),
    )


def _about(each: float, steps: int) -> str:
    seconds = each * steps
    return f"about {seconds:.0f} s" if seconds >= 1.5 else "about a second"
