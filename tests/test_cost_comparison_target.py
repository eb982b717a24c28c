"""The target of a comparison, when a training reached it, and the curves it is read from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comparisons import BATCH, make_problem, make_run, nothing
from wholebatch.cost.comparison.contenders import Entry
from wholebatch.cost.comparison.curves import join, score, time_epochs
from wholebatch.cost.comparison.reaching import constant_score, find_target, middle, reach, round_down
from wholebatch.cost.comparison.record import EngineName
from wholebatch.cost.comparison.timing import Burst
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.settings import Loss


def test_steps_and_time_to_the_target_are_those_of_the_first_evaluation_that_has_it():
    run = make_run(0.1, 0.5, 0.9, 0.8, 0.95)
    assert [reach(run, target).steps_to_target for target in (0.05, 0.5, 0.51, 0.9, 0.901, 0.95)] == [
        *(0, 10, 20, 20, 40, 40)
    ]
    assert reach(run, 0.51).seconds_to_target == 1.0
    never = reach(run, 0.951)
    assert (never.steps_to_target, never.seconds_to_target) == (None, None)
    assert reach(run, None).steps_to_target is None


def test_the_target_is_the_best_of_the_weakest_well_trained_run():
    runs = [
        make_run(0.1, 0.97, 0.96),
        make_run(0.1, 0.95, 0.91234567, norm="layer"),
        make_run(0.1, 0.93, 0.92, norm="rms"),
        make_run(0.1, 0.88, norm="none"),  # 0.1 + 0.9 * (0.97 - 0.1) = 0.883: not well trained
    ]
    target = find_target(runs, constant=0.1)
    assert (target.score, target.norm, target.given) == (0.93, "rms", False)
    assert reach(runs[3], target.score).steps_to_target is None
    assert find_target([*runs, make_run(0.1, 0.884, norm="none")], 0.1).score == 0.884


def test_a_diverged_run_sets_no_target_and_a_given_one_is_taken_as_it_is():
    runs = [make_run(0.1, 0.9), make_run(0.1, 0.85, norm="none").model_copy(update={"diverged": 20})]
    assert find_target(runs, 0.1).score == 0.9
    given = find_target(runs, 0.1, 0.123456)
    assert (given.score, given.given, given.norm) == (0.123456, True, None)


def test_nothing_learned_is_no_target():
    assert find_target([make_run(0.1, 0.2), make_run(0.2, 0.1)], constant=0.2).score is None


@pytest.mark.parametrize("value", [0.97221, 0.9722, 0.29, -0.00005, -3.2, 1.0, 0.1 + 0.2])
def test_a_rounded_target_is_never_above_the_score_it_comes_from(value: float):
    cut = round_down(value)
    assert cut <= value
    assert value - cut < 1.0001e-4  # one unit of the last decimal, and rounding of float64
    assert float(f"{cut:.4f}") == pytest.approx(cut, abs=1e-12)


def test_the_middle_of_seeds_counts_one_that_never_got_there_as_later_than_any():
    assert middle([3, 1, 2]) == (2, 1, 3)
    assert middle([4, 1, 2, 3]) == (2.5, 1, 4)
    assert middle([None, 5, 1]) == (5, 1, None)
    assert middle([None, None, 1]) == (None, 1, None)
    assert middle([None, 1]) == (None, 1, None)  # the mean with infinity
    assert middle([None]) == (None, None, None)
    assert middle([7]) == (7, 7, 7)


def test_the_constant_prediction_knows_the_training_targets_alone():
    x = np.zeros((4, 1))
    classes = Data(x, np.array([0, 2, 2, 1])), Data(x, np.array([2, 2, 0, 1]))
    assert constant_score(*classes, Loss("cross_entropy"), 3) == 0.5
    values = Data(x, np.array([[0.0], [0.0], [4.0], [4.0]])), Data(x, np.array([[0.0], [2.0], [4.0], [6.0]]))
    # predicted 2, true mean 3: R2 = 1 - (4 + 0 + 4 + 16) / (9 + 1 + 1 + 9)
    assert constant_score(*values, Loss("mse"), 1) == pytest.approx(-0.2, abs=1e-15)
    labels = Data(x, np.array([[1.0, 0.0]] * 3 + [[0.0, 0.0]])), Data(x, np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]]))
    assert constant_score(*labels, Loss("bce"), 2) == 0.75


def test_time_is_shared_evenly_within_an_epoch():
    run = join(BATCH, 4, [(0, 0.1), (2, 0.2), (5, 0.3), (8, 0.4), (10, 0.5)], None, [1.0, 2.5], 5)
    assert run.steps == [0, 2, 5, 8, 10]
    assert run.seconds == pytest.approx([0.0, 0.4, 1.0, 2.5, 3.5], abs=1e-12)
    assert (run.seed, run.norm, run.diverged) == (4, "batch", None)


def test_a_run_that_diverged_ends_with_its_last_whole_epoch():
    scores = [(0, 0.1), (3, 0.2), (5, 0.3), (7, 0.2)]
    run = join(BATCH, 0, scores, 8, [1.0, 2.0], 5)
    assert (run.steps, run.seconds, run.scores, run.diverged) == ([0, 3, 5], [0.0, 0.6, 1.0], [0.1, 0.2, 0.3], 8)
    at_the_end = join(BATCH, 0, scores, 10, [1.0, 2.0], 5)
    assert at_the_end.steps == [0, 3, 5]
    timed_shorter = join(BATCH, 0, scores, None, [1.0], 5)
    assert timed_shorter.steps == [0, 3, 5]


@pytest.mark.parametrize("engine", ["wholebatch", "torch"])
def test_a_training_that_diverges_is_told_not_shown_as_a_number(engine: EngineName):
    problem = make_problem(torch.float32)
    entry = Entry("none", engine, 1, "fused")
    steps: list[int] = []
    scores, diverged = score(problem, entry, 0, 1e30, 3, 2, steps.append)
    assert scores[0][0] == 0
    assert diverged is not None
    assert diverged <= 6
    assert sum(steps) == 3 * problem.steps_per_epoch
    burst = Burst(entry.start(problem, 0, 1e-5), problem, 1e-4)
    told: list[int] = []
    seconds = time_epochs(problem, [entry], [burst], [1e30], 0, 3, told.append)
    assert sum(told) == 3 * problem.steps_per_epoch
    run = join(entry, 0, scores, diverged, seconds[0], problem.steps_per_epoch)
    assert (run.steps, run.seconds) == ([0], [0.0])


def test_evaluations_stand_where_they_were_asked_for_and_at_the_end_of_an_epoch():
    problem = make_problem()
    assert problem.steps_per_epoch == 6
    scores, diverged = score(problem, BATCH, 0, 3e-3, 2, 4, nothing)
    assert diverged is None
    assert [step for step, _ in scores] == [0, 4, 6, 10, 12]


def test_every_contender_is_timed_for_every_epoch():
    problem = make_problem()
    entries = [BATCH, Entry("none", "torch", 1, "foreach")]
    bursts = [Burst(entry.start(problem, 0, 1e-5), problem, 1e-4) for entry in entries]
    told: list[int] = []
    seconds = time_epochs(problem, entries, bursts, [1e-3, 1e-3], 0, 4, told.append)
    assert [len(of) for of in seconds] == [4, 4]
    assert all(value > 0 for of in seconds for value in of)
    assert sum(told) == 2 * 4 * problem.steps_per_epoch
