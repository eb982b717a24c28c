"""The comparison's arithmetic on made-up curves and rounds, and that its contenders are given the same."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from wholebatch import runs
from wholebatch.commands import compare as command
from wholebatch.cost.comparison import claim, contenders, eager, rates
from wholebatch.cost.comparison.console import tell
from wholebatch.cost.comparison.contenders import Entry
from wholebatch.cost.comparison.curves import join, score, time_epochs
from wholebatch.cost.comparison.measuring import _every
from wholebatch.cost.comparison.norms import NORMS
from wholebatch.cost.comparison.ours import Ours
from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.reaching import constant_score, find_target, middle, reach, round_down
from wholebatch.cost.comparison.record import (
    Claim,
    Comparison,
    Contender,
    EngineName,
    NormName,
    Run,
    Target,
    Timing,
    Trial,
)
from wholebatch.cost.comparison.section import describe
from wholebatch.cost.comparison.settings import Wanted
from wholebatch.cost.comparison.summary import answers, duration, missed, summarise
from wholebatch.cost.comparison.timing import Burst, affordable, time_rounds
from wholebatch.cost.comparison.timing import summarise as summarise_rounds
from wholebatch.cost.comparison.trainer import DivergedError
from wholebatch.feedforward.data import Data, batch_offsets
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer

BATCH = Entry("batch", "wholebatch", 1, "reference")


def make_run(*scores: float, norm: NormName = "batch", engine: EngineName = "wholebatch", seed: int = 0) -> Run:
    """Scored every 10 steps, which take 0.5 s."""
    count = len(scores)
    steps, seconds = [10 * i for i in range(count)], [0.5 * i for i in range(count)]
    return Run(norm=norm, engine=engine, seed=seed, steps=steps, seconds=seconds, scores=list(scores))


def make_problem(dtype: torch.dtype = torch.float64, kind: str = "cross_entropy", rows: int = 83) -> Problem:
    """Rows that a net can learn, in mini-batches of 16 and a last one of 3."""
    rng = np.random.default_rng(3)
    numbers = np.float64 if dtype == torch.float64 else np.float32
    x = rng.standard_normal((rows + 40, 6)).astype(numbers)
    z = x @ rng.standard_normal((6, 3)).astype(numbers)
    y = z.argmax(1) if kind == "cross_entropy" else z if kind == "mse" else (z > 0).astype(numbers)
    plain = Architecture(6, (9, 8), 3, "none")
    parts = (Data(np.ascontiguousarray(x[s]), np.ascontiguousarray(y[s])) for s in (slice(rows), slice(rows, None)))
    offsets = batch_offsets(rows, 16, plain)
    return Problem(*parts, Loss(kind), plain, Optimizer("adamw", weight_decay=0.01), offsets, dtype)  # type: ignore[arg-type]


def nothing(_: float) -> None:
    """In place of progress."""


# --- the target, and when it was reached


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


# --- runs out of scores and epochs


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


# --- the claim


@pytest.mark.parametrize(
    ("value", "low", "high", "expected", "word"),
    [
        (1.02, 0.97, 1.08, "free", "does not hold"),
        (0.90, 0.85, 0.95, "free", "does not hold"),
        (1.38, 1.29, 1.54, "less", "does not hold"),
        (2.90, 2.80, 2.99, "less", "does not hold"),
        (2.90, 2.80, 3.10, "unclear", "neither yes nor no"),
        (3.90, 3.50, 4.20, "holds", " holds here"),
        (3.00, 3.00, 5.00, "holds", " holds here"),
        (4.90, 4.80, 5.20, "unclear", "neither yes nor no"),
        (7.10, 6.00, 9.00, "more", "even more"),
        (1.50, 0.90, 3.50, "unclear", "neither yes nor no"),
        (3.20, 2.00, 2.90, "unclear", "neither yes nor no"),  # the ratio of medians beside the rounds' ratios
    ],
)
def test_the_verdict(value: float, low: float, high: float, expected: str, word: str):
    found = claim.answer(value, low, high)
    assert found == expected
    made = Claim(norm="batch", engine="torch", ratio=value, low=low, high=high, answer=found)
    said = claim.sentence(made)
    assert word in said
    assert f"{value:.2f} times" in said
    assert "torch eager" in said
    assert (" holds" in claim.headline([made])) == (expected == "holds")


def test_the_headline_tells_engines_apart_that_do_not_agree():
    one = Claim(norm="batch", engine="wholebatch", ratio=1.1, low=1.05, high=1.2, answer="less")
    other = Claim(norm="batch", engine="torch", ratio=3.5, low=3.2, high=3.9, answer="holds")
    said = claim.headline([one, other])
    assert "does not hold on wholebatch, holds on torch eager" in said
    assert "does not hold on this machine" in claim.headline([one])


def test_the_ratio_is_that_of_medians_and_its_spread_that_of_rounds():
    above, below = [2.0, 4.0, 6.0, 8.0, 50.0], [1.0, 1.0, 2.0, 2.0, 5.0]
    value, low, high = claim.ratio(above, below)
    assert value == 3.0
    # rounds: 2, 4, 3, 4, 10; numpy's linear percentiles of 2 3 4 4 10 at 0.2 * 4 = 0.8 and 3.2
    assert (low, high) == pytest.approx((2.8, 5.2), abs=1e-12)


def test_claims_are_made_where_none_was_measured_on_the_same_engine():
    found = claim.check([make_contender("batch"), make_contender("layer", "torch"), make_contender("none")])
    assert [(c.norm, c.engine) for c in found] == [("batch", "wholebatch")]


# --- the same for all


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "bce"])
@pytest.mark.parametrize("norm", NORMS)
def test_torch_and_the_engine_take_the_same_steps(engine: str, norm: NormName, kind: str):
    """Equal nets after two epochs: first weights, mini-batches, losses and updates are all the same."""
    problem = make_problem(kind=kind)
    ours = Ours(problem, norm, 5, 1e-3, 1, "")
    ours.engine = make_engine(ours.engine.model, problem.loss, ours.engine.optimizer, n_threads=1, engine=engine)
    theirs = eager.Eager(problem, norm, 5, 1e-3, 1, "fused")
    first = [p.detach().clone() for p in theirs.net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, ours.engine.model.parameters(), strict=True))
    for epoch in range(2):
        order = problem.order(5, epoch)
        assert ours.train(order, problem.offsets) > 0
        assert theirs.train(order, problem.offsets) > 0
    for a, b, start in zip(ours.engine.model.parameters(), theirs.net.parameters(), first, strict=True):
        assert (a - start).abs().max() > 1e-4
        # 12 steps of at most 1e-3 each. Adam divides by the root of the second moment, so an error of float64's
        # rounding (1e-16 relative) in a gradient g grows by 1e-8 / |g| at most where g is near zero.
        assert torch.allclose(a, b, rtol=0, atol=1e-9)
    x = problem.validation.x
    assert np.allclose(ours.predict(x), theirs.predict(x), rtol=0, atol=1e-8)


def test_the_first_loss_is_that_of_the_first_mini_batch():
    problem = make_problem()
    ours = Ours(problem, "batch", 2, 1e-3, 1, "")
    theirs = eager.Eager(problem, "batch", 2, 1e-3, 1, "foreach")
    rows = problem.order(2, 0)[: problem.offsets[1]]
    expected, _ = ours.engine.gradients(problem.training.take(rows))
    found = theirs.loss(theirs.net(theirs.x[torch.from_numpy(rows)]), theirs.y[torch.from_numpy(rows)])
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)  # sums of 16 in another order: 16 * 2^-53


def test_every_norm_begins_with_the_same_weights_and_every_seed_with_its_own():
    problem = make_problem()
    weights = [[part.linear.weight for part in problem.net(norm, 1).parts()] for norm in NORMS]
    assert all(torch.equal(a, b) for of in weights[1:] for a, b in zip(weights[0], of, strict=True))
    other = [part.linear.weight for part in problem.net("batch", 2).parts()]
    assert not any(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))
    before = torch.random.get_rng_state()
    problem.net("batch", 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_torchs_optimizers_are_the_variants_they_are_named_after():
    problem = make_problem()
    for kind in ("sgd", "adam", "adamw"):
        of_kind = replace(problem, optimizer=Optimizer(kind, momentum=0.9 if kind == "sgd" else 0.0))  # type: ignore[arg-type]
        for how in eager.VARIANTS:
            made = eager.Eager(of_kind, "none", 0, 0.25, 1, how).optimizer
            assert type(made).__name__.lower() == kind
            assert (made.defaults["fused"], made.defaults["foreach"]) == (
                how == "fused" or None,
                how == "foreach" or None,
            )
            assert made.defaults["lr"] == 0.25


def test_outputs_that_are_not_finite_are_a_divergence():
    problem = make_problem()
    trainer = eager.Eager(problem, "none", 0, 1e-3, 1, "fused")
    with torch.no_grad():
        next(iter(trainer.net.parameters())).fill_(math.nan)
    with pytest.raises(DivergedError):
        trainer.train(problem.order(0, 0), problem.offsets)


# --- timing, variants, learning rates


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
    made = summarise_rounds([5.0, 1.0, 3.0, 2.0, 4.0], 7)
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


# --- what is shown


def make_contender(norm: NormName, engine: EngineName = "wholebatch", seconds: float = 1e-3) -> Contender:
    timing = summarise_rounds([seconds, 1.1 * seconds, 0.9 * seconds], 10)
    return Contender(norm=norm, engine=engine, threads=2, how="fused", parameters=7, learning_rate=0.003, timing=timing)


def make_record(seeds: int = 3, target: float | None = 0.8, **more: object) -> Comparison:
    """Batch norm gets to 0.8, none does not, in one seed of several layer norm does."""
    made = [make_contender("batch", seconds=1.5e-3), make_contender("layer"), make_contender("none")]
    found = [
        reach(run, target)
        for seed in range(seeds)
        for run in (
            make_run(0.1, 0.7, 0.85, seed=seed),
            make_run(0.1, 0.2, 0.81 if seed == 0 else 0.3, norm="layer", seed=seed),
            make_run(0.1, 0.2, 0.3, norm="none", seed=seed),
        )
    ]
    values = {
        "table": "<b>t</b>.csv",
        "target_columns": ["<i>y</i>"],
        "task": "classification",
        "score_name": "accuracy",
        "training_rows": 100,
        "validation_rows": 40,
        "sizes": [6, 9, 3],
        "activation": "relu",
        "optimizer": "adamw",
        "batch_size": 10,
        "epochs": 2,
        "steps_per_epoch": 10,
        "evaluated_every": 10,
        "seeds": list(range(seeds)),
        "most_threads": 2,
        "target": Target(score=target, given=target is not None, norm=None, constant=0.1),
        "contenders": made,
        "runs": found,
        "trials": [],
        "trials_engine": None,
        "claims": claim.check(made),
        "notes": [],
    }
    return Comparison.model_validate(values | more)


def printed(record: Comparison) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, markup=False, highlight=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for renderable in tell(record):
            console.print(renderable)
        return console.export_text()


def test_the_console_says_not_reached_in_place_of_a_number():
    said = printed(make_record())
    rows = {line.split("  ")[0].strip(): line for line in said.splitlines() if "wholebatch " in line}
    assert "not reached in 20 steps" in rows["none"]
    assert "not reached in 20 steps (1 of 3 seeds did)" in rows["layer"]
    assert "20 [20 – 20]" in rows["batch"]
    assert "1.00 s [1.00 – 1.00]" in rows["batch"]
    assert "1.50 ms [1.41 – 1.59]" in rows["batch"]
    assert "as asked for" in said
    assert "batch norm was there first, after 20 steps and 1.00 s; no norm: not reached in 20 steps" in said


def test_one_seed_has_no_spread():
    said = printed(make_record(seeds=1))
    row = next(line for line in said.splitlines() if line.strip().startswith("batch "))
    assert "20 [–]" in row
    assert "1.00 s [–]" in row
    assert "One seed: differences between norms may be chance" in said
    table = next(
        shown.table for shown in describe(make_record(seeds=1)).shown if shown.table and "To the" in shown.table.caption
    )
    assert list(table.rows[0][2:8]) == [20, None, None, 1000.0, None, None]


def test_nothing_learned_is_said_and_has_no_picture_of_a_target():
    record = make_record(target=None)
    said = " ".join(answers(record))
    assert "No norm learned to predict <i>y</i> better than a constant does (accuracy 0.1000)" in said
    names = [shown.picture.name for shown in describe(record).shown if shown.picture]
    assert names == ["comparison-step", "comparison-score-step", "comparison-score-second-wholebatch"]


def test_a_target_that_nobody_reached_has_a_table_and_no_bars():
    section = describe(make_record(target=0.99))
    assert not [s for s in section.shown if s.picture and s.picture.name in ("comparison-steps", "comparison-time")]
    table = next(shown.table for shown in section.shown if shown.table and "To the" in shown.table.caption)
    assert [row[2] for row in table.rows] == ["not reached in 20 steps"] * 3
    assert "On wholebatch no norm reached it within 20 steps." in section.answer


def test_diverged_trainings_are_told():
    record = make_record()
    for run in record.runs:
        if run.norm == "none":
            run.diverged = 7
    summary = summarise(record)[2]
    assert missed(summary, record) == "diverged"
    assert any("no longer finite" in note and "no norm on wholebatch" in note for note in describe(record).notes)


def test_learning_rates_that_were_tried_are_told():
    trials = [
        Trial(norm="batch", learning_rate=0.01, best=0.9, mean=0.5, chosen=True),
        Trial(norm="batch", learning_rate=0.1, best=None, mean=None, chosen=False),
    ]
    record = make_record(trials=trials, trials_engine="wholebatch")
    assert "diverged" in printed(record)
    section = describe(record)
    assert any("0.01, 0.1 were tried" in note and "batch norm 0.01" in note for note in section.notes)
    assert section.shown[-1].table is not None
    assert section.shown[-1].table.rows[1][2] == "diverged"


def test_the_section_shows_what_the_record_has():
    record = make_record()
    section = describe(record)
    pictures = {shown.picture.name: shown.picture for shown in section.shown if shown.picture}
    assert len(pictures) == 5
    bars = [trace for trace in pictures["comparison-steps"].figure.data if trace.x[0] is not None]
    assert [list(trace.y) for trace in bars] == [[20.0, 0.0, 0.0]]
    assert list(bars[0].text) == ["", "not reached", "not reached"]
    steps = [trace for trace in pictures["comparison-step"].figure.data if trace.x[0] is not None]
    assert list(steps[0].y) == pytest.approx([1500.0, 1000.0, 1000.0])
    assert list(steps[0].text) == ["1.50 ×", "1.00 ×", ""]
    line = next(t for t in pictures["comparison-score-step"].figure.data if t.name == "batch")
    assert (list(line.x), list(line.y)) == ([0, 10, 20], pytest.approx([0.1, 0.7, 0.85]))
    assert [tile.value for tile in section.tiles] == ["1.50 ×", "1.00 s"]
    assert section.answer[0].startswith("With batch norm a step took 1.50 times on wholebatch as long as without")


def test_the_best_so_far_by_second_never_falls():
    record = make_record()
    for run in record.runs:
        run.scores = [0.1, 0.9, 0.4]
    figure = next(s.picture.figure for s in describe(record).shown if s.picture and "second" in s.picture.name)
    lines = [trace for trace in figure.data if trace.name]
    assert len(lines) == 3
    assert all(list(trace.y) == pytest.approx([0.1, 0.9, 0.9]) for trace in lines)


def test_a_record_survives_json():
    record = make_record()
    assert Comparison.model_validate_json(record.model_dump_json()) == record
    with pytest.raises(ValueError, match="finite"):
        Timing(seconds=[math.nan], steps=1, median=1.0, low=1.0, high=1.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"),
        (3.214e-6, "3.21 µs"),
        (352.9e-6, "353 µs"),
        (0.99996e-3, "1.00 ms"),
        (0.0205, "20.5 ms"),
        (1.2345, "1.23 s"),
        (99.97, "100 s"),
        (None, "–"),
    ],
)
def test_durations_have_three_digits(seconds: float | None, said: str):
    assert duration(seconds) == said
