"""The score to reach, and when a training reached it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wholebatch.cost.comparison.record import Run, Target
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.evaluation import score
from wholebatch.feedforward.settings import Loss

WELL_TRAINED = 0.9
"""A training counts as well trained where it closes this share of the gap between a constant prediction and the best
training. A norm that fails must not set the bar for the others."""
DIGITS = 4
"""A target is rounded down to so many decimals, so that the number that is shown is the one that is compared."""


def constant_score(training: Data, validation: Data, loss: Loss, outputs: int) -> float:
    """The score on the validation rows of what knows the training targets alone: its most frequent class, its means.

    Args:
        outputs: of the net: classes, values or labels.
    """
    assert training.y is not None
    if loss.takes_classes:
        guess = np.bincount(training.y, minlength=outputs).astype(np.float64)
    else:
        guess = training.y.mean(0, dtype=np.float64)
        if loss.kind == "bce":  # a label is predicted where its logit is above 0
            guess = guess - 0.5
    guesses = np.tile(np.asarray(guess, dtype=np.float64), (len(validation), 1))
    return score(guesses, validation, loss)


def find_target(runs: Sequence[Run], constant: float, given: float | None = None) -> Target:
    """The target ``given``, or the best score of the weakest training that is well trained.

    Args:
        runs: of all contenders and seeds.
        constant: the score of a constant prediction.
    """
    if given is not None:
        return Target(score=given, given=True, norm=None, constant=constant)
    best = max(run.best for run in runs)
    least = constant + WELL_TRAINED * (best - constant)
    trained = [run for run in runs if run.diverged is None and run.best >= least]
    if best <= constant or not trained:
        return Target(score=None, given=False, norm=None, constant=constant)
    weakest = min(trained, key=lambda run: run.best)
    return Target(score=round_down(weakest.best), given=False, norm=weakest.norm, constant=constant)


def round_down(value: float) -> float:
    """``value`` cut to :data:`DIGITS` decimals, never to more than it is."""
    scale = 10**DIGITS
    cut: float = math.floor(value * scale) / scale
    return cut if cut <= value else (math.floor(value * scale) - 1) / scale


def reach(run: Run, target: float | None) -> Run:
    """``run`` with the first evaluation that has the target, if there is one."""
    first = None if target is None else next((i for i, s in enumerate(run.scores) if s >= target), None)
    steps, seconds = (None, None) if first is None else (run.steps[first], run.seconds[first])
    return run.model_copy(update={"steps_to_target": steps, "seconds_to_target": seconds})


def middle(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """(median, least, most) over seeds, where None means "not within this training": later than any number.

    The median of an even number of seeds is the mean of the two in the middle; with one of them None, it is None.
    """
    ordered = sorted(math.inf if value is None else float(value) for value in values)
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return _finite(median), _finite(ordered[0]), _finite(ordered[-1])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
