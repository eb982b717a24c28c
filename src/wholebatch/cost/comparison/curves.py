"""Trainings: what they score as they go on, and how long they take.

Each contender is trained twice from each seed, over the same mini-batches. Once it is stopped every few steps and
scored. And once it is not stopped but at the end of an epoch, and timed, in turn with the other contenders: so neither
evaluations, nor what it takes to stop for them, are in the time. Within an epoch, time is shared evenly among steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from wholebatch.cost.comparison.contenders import Entry
from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.record import Run
from wholebatch.cost.comparison.timing import Burst
from wholebatch.cost.comparison.trainer import DivergedError, evaluate

TURN_SECONDS = 0.05
"""A contender trains whole epochs for about so long before it is the next one's turn."""

Scores = list[tuple[int, float]]


def score(
    problem: Problem,
    entry: Entry,
    seed: int,
    learning_rate: float,
    epochs: int,
    every: int,
    tell: Callable[[int], None],
) -> tuple[Scores, int | None]:
    """(step, score) at step 0, every so many steps of an epoch and at its end; and the step until which it diverged.

    Args:
        tell: called with the steps done since it was called last.
    """
    trainer = entry.start(problem, seed, learning_rate)
    steps, found = problem.steps_per_epoch, [(0, evaluate(trainer, problem))]
    stops = [*range(0, steps, every), steps]
    for epoch in range(epochs):
        order = problem.order(seed, epoch)
        for first, last in pairwise(stops):
            offsets = problem.offsets[first : last + 1]
            try:
                trainer.train(order[offsets[0] : offsets[-1]], offsets - offsets[0])
                found.append((epoch * steps + last, evaluate(trainer, problem)))
            except DivergedError:
                tell((epochs - epoch) * steps - first)
                return found, epoch * steps + last
            tell(last - first)
    return found, None


def time_epochs(
    problem: Problem,
    entries: Sequence[Entry],
    warmers: Sequence[Burst],
    learning_rates: Sequence[float],
    seed: int,
    epochs: int,
    tell: Callable[[int], None],
) -> list[list[float]]:
    """Seconds of each epoch of each contender; fewer than ``epochs`` where it diverged.

    Args:
        entries: the contenders.
        warmers: of each, what runs a few steps on a net beside, right before it is timed.
        learning_rates: of each.
        tell: called with the steps done since it was called last.
    """
    trainers = [e.start(problem, seed, rate) for e, rate in zip(entries, learning_rates, strict=True)]
    seconds: list[list[float]] = [[] for _ in entries]
    waiting, shuffle = list(range(len(entries))), random.Random(seed).shuffle
    while waiting:
        shuffle(waiting)
        for index in list(waiting):
            warmers[index].warm()
            spent, before = 0.0, len(seconds[index])
            try:
                while spent < TURN_SECONDS and len(seconds[index]) < epochs:
                    order = problem.order(seed, len(seconds[index]))
                    seconds[index].append(trainers[index].train(order, problem.offsets))
                    spent += seconds[index][-1]
                done = len(seconds[index]) - before
            except DivergedError:
                waiting.remove(index)
                done = epochs - before
            else:
                if len(seconds[index]) == epochs:
                    waiting.remove(index)
            tell(done * problem.steps_per_epoch)
    return seconds


def join(entry: Entry, seed: int, scores: Scores, diverged: int | None, seconds: Sequence[float], steps: int) -> Run:
    """The run: scores with the time at which they stood. One that diverged ends with its last whole epoch.

    Args:
        scores: (step, score), the first at step 0.
        diverged: the step until which it diverged, if it did.
        seconds: of each whole epoch.
        steps: of an epoch.
    """
    if diverged is not None:
        seconds = seconds[: (diverged - 1) // steps]
    clock = np.concatenate([[0.0], np.cumsum(seconds, dtype=np.float64)])
    kept = [(step, value) for step, value in scores if step <= len(seconds) * steps]
    return Run(
        norm=entry.norm,
        engine=entry.engine,
        seed=seed,
        steps=[step for step, _ in kept],
        seconds=[at(clock, step / steps) for step, _ in kept],
        scores=[value for _, value in kept],
        diverged=diverged,
    )


def at(clock: np.ndarray, epochs: float) -> float:
    """The time after so many epochs, where ``clock[e]`` is that after e whole ones."""
    whole = math.floor(epochs)
    if whole + 1 >= len(clock):
        return float(clock[-1])
    return float(clock[whole] + (epochs - whole) * (clock[whole + 1] - clock[whole]))
