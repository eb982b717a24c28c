"""How a comparison times steps, and chooses variants and learning rates."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from comparisons import BATCH, make_problem, nothing
from wholebatch import runs
from wholebatch.commands import compare as command
from wholebatch.cost.comparison import contenders, rates
from wholebatch.cost.comparison.contenders import Entry
from wholebatch.cost.comparison.measuring import _every
from wholebatch.cost.comparison.norms import NORMS
from wholebatch.cost.comparison.record import EngineName, NormName
from wholebatch.cost.comparison.settings import Wanted
from wholebatch.cost.comparison.timing import Burst, affordable, time_rounds
from wholebatch.cost.timing import summarise
from wholebatch.feedforward.data import Data


def test_rounds_time_every_burst_and_are_summarised():
    problem = make_problem()
    bursts = [Burst(Entry(norm, "torch", 1, "fused").start(problem, 0, 1e-5), problem, 1e-3) for norm in NORMS]
    shares: list[float] = []
    timings = time_rounds(bursts, 3, shares.append)
    assert [len(timing.seconds) for timing in timings] == [3] * 5
    assert all(0 < t.low <= t.median <= t.high for t in timings)
    assert shares[-1] == pytest.approx(1.0)
    assert shares == sorted(shares)
    assert all(timing.steps >= 4 for timing in timings)
    made = summarise([5.0, 1.0, 3.0, 2.0, 4.0], 7)
    assert (made.low, made.median, made.high, made.steps) == (pytest.approx(1.8), 3.0, pytest.approx(4.2), 7)


def test_a_burst_is_whole_epochs_where_they_are_short_and_a_part_of_one_where_not(monkeypatch: pytest.MonkeyPatch):
    problem = make_problem(rows=16 * 100)  # 100 steps an epoch
    trainer = BATCH.start(problem, 0, 1e-5)
    monkeypatch.setattr(trainer, "train", lambda order, offsets: 0.001 * (len(offsets) - 1))
    assert Burst(trainer, problem, 0.0305).steps == 100  # 30 steps asked for
    assert Burst(trainer, problem, 0.2505).steps == 200
    assert Burst(trainer, problem, 0.0105).steps == 10


def test_long_steps_get_fewer_rounds_but_never_too_few():
    burst = Burst(BATCH.start(make_problem(), 0, 1e-5), make_problem(), 1e-3)
    burst.first = 0.1
    expected = burst.steps * 0.1 + 0.2  # two steps go before
    assert burst.cost == pytest.approx(expected)
    assert affordable([burst, burst], 61, 7, 2 * 20.5 * expected) == 20
    assert affordable([burst], 61, 7, 1e9) == 61
    assert affordable([burst], 61, 7, 1e-9) == 7


def test_scoring_takes_no_longer_than_training():
    problem = make_problem()  # 6 steps an epoch, mini-batches of 16 rows, 40 rows to score: 40 / 48 of a step
    assert _every(problem, 10) == 1
    assert _every(problem, 100) == 6
    many = replace(problem, validation=Data(np.zeros((1000, 6)), np.zeros(1000, dtype=np.int64)))
    assert _every(many, 10) == 21


class Sleeper:
    """A burst that takes a known time."""

    def __init__(self, first: float, later: float) -> None:
        self.first, self.later, self.runs = first, later, 0

    def run(self) -> float:
        self.runs += 1
        return self.later


def test_the_trial_takes_the_fastest_of_a_group_and_drops_the_hopeless():
    hopeless, slow, fast, alone = Sleeper(9.0, 9.0), Sleeper(1.0, 1.5), Sleeper(1.5, 1.0), Sleeper(5.0, 5.0)
    bursts = [hopeless, slow, fast, alone]
    chosen = contenders._fastest(bursts, [[0, 1, 2], [3]], nothing)  # type: ignore[arg-type]
    assert chosen == [2, 3]
    assert [burst.runs for burst in bursts] == [0, contenders.TRIAL_ROUNDS, contenders.TRIAL_ROUNDS, 0]


def test_each_norm_gets_the_learning_rate_of_its_best_score():
    def curve(*scores: float, diverged: int | None = None) -> tuple[list[tuple[int, float]], int | None]:
        return list(enumerate(scores)), diverged

    found = rates.choose("layer", [0.1, 0.2, 0.3], [[curve(0, 0.8)], [curve(0.1, 0.9)], [curve(0, 0.95, diverged=9)]])
    assert [trial.chosen for trial in found] == [False, True, False]
    assert [trial.best for trial in found] == [0.8, 0.9, None]
    seeds = rates.choose("layer", [0.1, 0.2], [[curve(0.8), curve(0.8)], [curve(0.9), curve(0.6)]])
    assert [trial.best for trial in seeds] == [0.8, 0.75]
    assert seeds[0].chosen
    tie = rates.choose("layer", [0.1, 0.2], [[curve(0.1, 0.9)], [curve(0.5, 0.9)]])
    assert [trial.chosen for trial in tie] == [False, True]
    none = rates.choose("layer", [0.3, 0.1], [[curve(0.1, diverged=1)], [curve(0.1, diverged=1)]])
    assert [trial.chosen for trial in none] == [False, True]


def test_what_is_asked_for_is_checked():
    settings = runs.Settings(table="t", target=("y",))
    for name, value, words in (
        ("norms", (), "norms is empty"),
        ("norms", ("batch", "batch"), "batch more than once"),
        ("seeds", 0, "seeds is 0"),
        ("threads", 0, "threads is 0"),
        ("evaluate_every", 0, "evaluate_every is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            Wanted(settings, **{name: value})  # type: ignore[arg-type]


def test_names_are_the_same_everywhere():
    assert tuple(NORMS) == command.NORMS == get_args(NormName) == Wanted(runs.Settings(table="t", target=("y",))).norms
    assert get_args(EngineName) == command.ENGINES
