"""The model of the plan: exchanges, stretches, simulation against closed form, and what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import log_ndtr

from wholebatch.cost.plan.closed_form import solve
from wholebatch.cost.plan.exchange import allreduce_us, exchange_us
from wholebatch.cost.plan.forecast import MOST_SIMULATED, plan
from wholebatch.cost.plan.others import crowd
from wholebatch.cost.plan.outcome import Outcome, Team
from wholebatch.cost.plan.record import Forecast, Layer, Link, Network, Slow, Workload
from wholebatch.cost.plan.simulation import simulate
from wholebatch.cost.plan.stretches import Stretch, split

LINK = Link(latency_us=4.0, megabytes_per_second=1024.0, source="given")
NETWORK = Network(meetings=LINK, gradients=LINK, exchange="allreduce")


def workload(spread: float = 0.1) -> Workload:
    """Two layers with batch norm and an output; times and sizes are small binary numbers, whose sums are exact."""
    more = {"forward_spread": spread, "backward_spread": spread}
    met = {"forward_bytes": 1024, "backward_bytes": 2048}
    layers = [
        Layer(name="a", forward_us=64, backward_us=128, **more, **met),
        Layer(name="b", forward_us=32, backward_us=96, **more, **met),
        Layer(name="output", forward_us=16, backward_us=24, **more),
    ]
    return Workload(
        source="a test",
        rows=64,
        whole_rows=64,
        layers=layers,
        update_us=8,
        update_spread=spread,
        gradient_bytes=65536,
    )


def test_a_message_and_the_algorithms():
    """By hand: 1024 bytes take 4 + 1 microseconds."""
    assert exchange_us(LINK, "allreduce", 1, 1024) == 0
    found = allreduce_us(LINK, 8, 1024)
    assert found == {"recursive doubling": 3 * 5, "halving-doubling": 6 * 4 + 2 * 7 / 8, "ring": 14 * 4 + 2 * 7 / 8}
    found = allreduce_us(LINK, 6, 1024)  # 4 of 6 halve, the other 2 hand in before and are told after
    assert found["recursive doubling"] == 2 * 5 + 2 * 5
    assert found["halving-doubling"] == 4 * 4 + 2 * 3 / 4 + 2 * 5
    assert found["ring"] == pytest.approx(10 * 4 + 2 * 5 / 6)
    assert exchange_us(LINK, "allgather", 8, 1024) == 7 * 5
    assert exchange_us(LINK, "shared memory", 8, 1024) == 4 + 7


@pytest.mark.parametrize(
    ("workers", "size", "cheapest"),
    [(64, 512, "recursive doubling"), (64, 1 << 24, "halving-doubling"), (3, 1 << 24, "ring")],
)
def test_the_cheapest_algorithm_is_taken(workers: int, size: int, cheapest: str):
    found = allreduce_us(LINK, workers, size)
    assert exchange_us(LINK, "allreduce", workers, size) == found[cheapest] == min(found.values())


def test_stretches_lie_between_meetings():
    """Update and first layer, second layer, output forward and backward, backward of each."""
    found = split(workload())
    assert [one.compute_us for one in found] == [8 + 64, 32, 16 + 24, 96, 128]
    assert [one.size for one in found] == [1024, 1024, 2048, 2048, 65536]
    assert [one.gradients for one in found] == [False] * 4 + [True]
    assert found[1].spread == pytest.approx(0.1)
    assert found[0].spread == pytest.approx(0.1 * math.hypot(8, 64) / 72)  # variances of independent pieces add up
    given = split(workload(), jitter=0.3, factor=2)
    assert [one.spread for one in given] == [0.3] * 5
    assert [one.compute_us for one in given] == [2 * one.compute_us for one in found]


def test_a_layer_without_a_meeting_lengthens_its_stretch():
    work = workload()
    work.layers[0] = work.layers[0].model_copy(update={"forward_bytes": 0, "backward_bytes": 0})
    found = split(work)
    assert [one.compute_us for one in found] == [8 + 64 + 32, 16 + 24, 96 + 128]


STRETCHES = [
    Stretch(100, 0.2, 0),
    Stretch(50, 0.4, 0),
    Stretch(0, 0.2, 0),
    Stretch(80, 0, 0),
    Stretch(70, 0.1, 0, True),
]
MESSAGES = [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("slow", [None, Slow(worker=0, by=1.2), Slow(worker=0, by=3)])
@pytest.mark.parametrize("workers", [1, 6, 48])
def test_closed_form_and_simulation_agree(workers: int, slow: Slow | None):
    """Means within five standard errors, which a right simulation leaves once in two million times. A quantile q of n
    draws has a rank of standard deviation sqrt(n q (1 - q)): the closed form lies between the draws five of those to
    either side, told here through the same quantiles of simulations with other seeds."""
    steps = 6000
    teams = [Team(workers, group, slow) for group in sorted({1, min(3, workers), workers})]
    simulated = simulate(STRETCHES, dict.fromkeys(teams, MESSAGES), steps, seed=1)
    for team, found in simulated.items():
        solved = solve(STRETCHES, MESSAGES, team)
        assert abs(found.mean_us - solved.mean_us) < 5 * found.error_us
        deviation = found.error_us * math.sqrt(steps)
        # In a distribution without gaps the density at the median and at p95 is at least 0.2 and 0.05 per deviation.
        assert abs(found.p50_us - solved.p50_us) < 5 * 0.5 / 0.2 * deviation / math.sqrt(steps)
        assert abs(found.p95_us - solved.p95_us) < 5 * 0.22 / 0.05 * deviation / math.sqrt(steps)
        # Compute is the mean of workers * steps * stretches draws; its standard error is at most that of one worker.
        one = math.sqrt(sum((s.compute_us * s.spread) ** 2 for s in STRETCHES)) * (slow.by if slow else 1)
        assert abs(found.compute_us - solved.compute_us) < 5 * one / math.sqrt(steps)
        assert solved.mean_us == pytest.approx(solved.compute_us + solved.wait_us + sum(MESSAGES), rel=1e-9)


@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("workers", [2, 300, 4096, 1_000_000])
def test_closed_form_is_the_integral(workers: int, spread: float):
    """All workers meet after each stretch: the mean is the sum of ``integral of x N f(x) F(x)^(N-1) dx``."""

    def largest(stretch: Stretch) -> float:
        sigma = stretch.sigma

        def density(z: float) -> float:
            log = math.log(workers) - z * z / 2 - math.log(2 * math.pi) / 2 + (workers - 1) * log_ndtr(z)
            return math.exp(sigma * z - sigma**2 / 2 + log)

        return stretch.compute_us * quad(density, -10, 14, points=[0, 2, 4, 6], limit=500, epsrel=1e-11)[0]

    stretches = [Stretch(100, spread, 0), Stretch(30, spread / 2, 0), Stretch(70, spread, 0, True)]
    found = solve(stretches, [0.0] * 3, Team(workers, workers))
    assert found.mean_us == pytest.approx(sum(map(largest, stretches)), rel=1e-8)


def test_without_jitter_a_step_is_the_sum():
    """Exactly: the numbers are binary fractions. Nobody waits, whoever meets; by simulation and in closed form."""
    compute = 8 + 64 + 32 + 16 + 24 + 96 + 128
    found = plan(workload(spread=0.0), NETWORK, [2, 8, 2 * MOST_SIMULATED])
    assert {one.method for one in found.forecasts} == {"simulated", "closed form"}
    for one in found.forecasts:
        sizes = [1024, 1024, 2048, 2048]
        met = sum(exchange_us(LINK, "allreduce", one.group, size) for size in sizes)
        gradients = exchange_us(LINK, "allreduce", one.workers, 65536)
        assert one.exchange_us == pytest.approx(met + gradients, rel=1e-15)
        assert one.mean_us == pytest.approx(compute + met + gradients, rel=1e-15)
        assert one.p50_us == one.p95_us == one.mean_us
        assert one.compute_us == pytest.approx(compute, rel=1e-15)
        assert (one.wait_us, one.error_us) == (0, 0)


def test_one_worker_neither_waits_nor_exchanges():
    found = plan(workload(), NETWORK, [1])
    for one in found.forecasts:
        assert (one.wait_us, one.exchange_us, one.gradients_us) == (0, 0, 0)
        assert one.mean_us == pytest.approx(one.compute_us, rel=1e-12)


@pytest.mark.parametrize("workers", [8, 2 * MOST_SIMULATED])
def test_more_jitter_more_wait(workers: int):
    """By convexity; the draws are the same for each jitter, so that no chance is in it."""
    found = [plan(workload(), NETWORK, [workers], jitter=jitter).forecasts for jitter in (0, 0.02, 0.1, 0.3, 0.8)]
    for at in range(len(found[0])):
        waits = [forecasts[at].wait_us for forecasts in found]
        assert waits == sorted(waits)
        assert len(set(waits)) == len(waits)


def test_the_more_meet_the_longer_it_takes():
    """In every simulated step, for the draws are the same: so in the means. More workers take longer, too."""
    found = plan(workload(), NETWORK, [8, 64, 4096], jitter=0.2)
    for workers in (8, 64, 4096):
        steps = [one.mean_us for one in found.forecasts if one.workers == workers]
        assert steps == sorted(steps, reverse=True)
    assert [one.mean_us for one in found.of("all")] == sorted(one.mean_us for one in found.of("all"))


def test_everyone_waits_for_a_slow_worker():
    """Without jitter: at every meeting for all of them, at the sum of gradients for none; a mean over 4 workers."""
    compute = 8 + 64 + 32 + 16 + 24 + 96 + 128
    found = plan(workload(spread=0), NETWORK, [4], slow=Slow(worker=3, by=3), group_size=2)
    for one in found.forecasts:
        assert one.wait_us == pytest.approx(3 / 4 * 2 * compute)
        assert one.compute_us == pytest.approx((3 + 3) / 4 * compute)


def test_the_mini_batch_divided():
    """Strong scaling: compute shrinks with the rows, exchange does not."""
    weak, strong = (plan(workload(0), NETWORK, [4], strong=strong).of("all")[0] for strong in (False, True))
    assert strong.compute_us == pytest.approx(weak.compute_us / 4)
    assert strong.exchange_us == weak.exchange_us


def test_groups_where_they_divide():
    found = plan(workload(), NETWORK, [2, 6, 8, 12, 24])
    assert [(one.workers, one.group) for one in found.of("groups")] == [(24, 8)]
    assert [one.group for one in plan(workload(), NETWORK, [2, 12], group_size=4).of("groups")] == [4]


@pytest.mark.parametrize(
    ("workers", "more", "said"),
    [
        ([2, 10], {"group_size": 4}, "groups of 4 do not divide 10 workers"),
        ([2, 4], {"slow": Slow(worker=2, by=3)}, "worker 2 is to be slow, and of 2 workers the last one is 1"),
        ([128], {"strong": True}, "128 workers cannot divide a mini-batch of 64 rows"),
        ([0], {}, "at least 1"),
        ([], {}, "at least 1"),
    ],
)
def test_what_cannot_be_planned(workers: list[int], more: dict, said: str):
    with pytest.raises(ValueError, match=said):
        plan(workload(), NETWORK, workers, **more)


def test_the_same_seed_gives_the_same_plan():
    first, again, other = (plan(workload(), NETWORK, [16], seed=seed).forecasts for seed in (1, 1, 2))
    assert first == again
    assert first[0].mean_us != other[0].mean_us


def test_chunks_do_not_change_what_is_simulated(monkeypatch: pytest.MonkeyPatch):
    """Steps are drawn in chunks: every step must be there, with its own draws."""
    monkeypatch.setattr("wholebatch.cost.plan.simulation._DRAWN_AT_ONCE", 64)
    team = Team(8, 8)
    (found,) = simulate(STRETCHES, {team: MESSAGES}, 3001, seed=3).values()
    solved: Outcome = solve(STRETCHES, MESSAGES, team)
    assert abs(found.mean_us - solved.mean_us) < 5 * found.error_us
    assert found.error_us == pytest.approx(
        np.std([one.mean_us for one in _one_by_one(team, 3001)], ddof=1) / math.sqrt(3001), rel=0.15
    )


def _one_by_one(team: Team, steps: int) -> list[Outcome]:
    return [simulate(STRETCHES, {team: MESSAGES}, 1, seed=seed)[team] for seed in range(steps // 10)]


def test_threads_over_cores():
    assert crowd(2, 0, 4) == 1
    assert crowd(8, 0, 4) == 2
    assert crowd(4, 4, 4) == pytest.approx((8 / 4) / (5 / 4))


def test_a_share_of_nothing():
    nothing = Forecast(
        **dict.fromkeys(("mean_us", "error_us", "p50_us", "p95_us", "compute_us", "wait_us"), 0.0),
        exchange_us=0.0,
        gradients_us=0.0,
        workers=1,
        group=1,
        steps=0,
        synchronisation="all",
        method="simulated",
    )
    assert nothing.wait_share == 0
