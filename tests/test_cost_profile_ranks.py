"""The profile over ranks: who waited for whom, and models that differ."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import wholebatch
from ranks import run_ranks
from wholebatch.cost import record
from wholebatch.cost.profile.measuring import profile
from wholebatch.cost.profile.meetings import split
from wholebatch.cost.profile.record import Profile
from wholebatch.cost.profile.samples import Samples, Trace
from wholebatch.cost.profile.words import answer

NAP = 0.1
# A rank that leaves a sleep, and one that waits for it, are woken some time after: the wait may be shorter than the
# sleep by as long as the waiting rank itself came late: on a busy machine some time slices of 4 ms for each neighbour.
LATE = 0.04


class LateOn(nn.Module):
    """Sleeps on one rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        if dist.get_rank() == self.rank:
            time.sleep(NAP)
        return x


def build(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 2))


def profile_late(rank: int) -> str | None:
    model = build(
        wholebatch.BatchNorm1d(8, process_group="world"),
        LateOn(1),
        wholebatch.BatchNorm1d(8, process_group="world"),
    )
    x = torch.randn(16, 4)
    measured = profile(lambda: model(x).sum().backward(), "late", rounds=4, converting=False)
    return measured and measured.model_dump_json()


@pytest.mark.parametrize("transport", ["shared_memory", "gloo"])
def test_the_late_rank_is_named_and_the_wait_is_the_others(transport: str) -> None:
    outcomes = run_ranks(profile_late, 2, environment={"WHOLEBATCH_TRANSPORT": transport})
    assert outcomes[1].value is None
    measured = Profile.model_validate_json(outcomes[0].value)
    first, second = measured.ranks
    assert [rank.rank for rank in measured.ranks] == [0, 1]
    assert measured.slowest == 1
    assert first.meetings == second.meetings == 4
    assert first.wait is not None
    assert first.wait.median >= NAP - LATE
    assert second.caused is not None
    assert second.caused.median >= NAP - LATE
    assert second.last >= 4  # at least at the meeting after its sleep, in each of the measured steps
    # The wait is at the layer behind the sleep, within its forward time, and not at the other rank's.
    behind = first.layers[1]
    assert behind.wait is not None
    assert behind.wait.median >= NAP - LATE
    assert behind.forward.median >= behind.wait.median - LATE
    said = " ".join(answer(measured))
    assert f"The slowest is rank 1 on {second.host}" in said


def profile_different(rank: int) -> None:
    model = build(nn.BatchNorm1d(8) if rank == 0 else nn.LayerNorm(8), nn.ReLU())
    x = torch.randn(16, 4)
    profile(lambda: model(x).sum().backward(), "different", rounds=6)


def test_ranks_with_different_models_are_told_so() -> None:
    for outcome in run_ranks(profile_different, 2):
        assert outcome.error == (
            "ValueError: the ranks have different models: normalisation layer 1 is 1, BatchNorm1d(8), on rank 0 and 1, "
            "LayerNorm(8) on rank 1; build the same model on every rank"
        )


def profile_fewer(rank: int) -> None:
    model = build(*[nn.LayerNorm(8)] if rank == 0 else [])
    x = torch.randn(16, 4)
    profile(lambda: model(x).sum().backward(), "fewer", rounds=6)


def test_a_rank_without_the_layer_is_told_so() -> None:
    for outcome in run_ranks(profile_fewer, 2):
        assert "normalisation layer 1 is 1, LayerNorm(8), on rank 0 and none on rank 1" in outcome.error


def profile_failing(rank: int, after: int) -> None:
    model, calls = build(nn.LayerNorm(8)), []
    x = torch.randn(16, 4)

    def step() -> None:
        calls.append(1)
        if rank == 1 and len(calls) > after:
            raise OSError("the data are gone")
        model(x).sum().backward()

    profile(step, "failing", rounds=6)


@pytest.mark.parametrize("after", [0, 8])
def test_nobody_waits_for_a_rank_that_failed(after: int) -> None:
    first, second = run_ranks(profile_failing, 2, after)
    assert second.error.startswith("StepError: failing raised OSError: the data are gone (")
    assert first.error.startswith("ValueError: rank 1 failed: failing raised OSError: the data are gone (")


def record_late(rank: int) -> str | None:
    model = build(LateOn(0), wholebatch.BatchNorm1d(8, process_group="world"))
    x = torch.randn(16, 4)
    with record(model, process_group="world") as recorder:
        for _ in range(7):
            model(x).sum().backward()
            recorder.step()
    return recorder.recording.profile.model_dump_json() if rank == 0 else None


def test_a_loop_is_recorded_on_all_ranks() -> None:
    measured = Profile.model_validate_json(run_ranks(record_late, 2)[0].value)
    assert measured.slowest == 0
    assert measured.ranks[1].wait is not None
    assert measured.ranks[1].wait.median >= NAP - LATE
    assert measured.layers[0].calls == 1


def profile_uneven(rank: int) -> str | None:
    model = build(LateOn(1), wholebatch.BatchNorm1d(8, process_group="world"))
    x = torch.randn(16, 4)
    measured = profile(lambda: model(x).sum().backward(), "uneven", rounds=6)
    return measured and measured.model_dump_json()


def test_a_rank_that_no_longer_waits_saves_nothing() -> None:
    """Reverted, rank 0 runs ahead of the late one; the step of all is as long as before."""
    measured = Profile.model_validate_json(run_ranks(profile_uneven, 2)[0].value)
    assert measured.conversion is not None
    assert measured.conversion.way == "revert"
    assert measured.conversion.after.low >= NAP
    assert any("price of sharing" in note for note in measured.notes)


def of_stays(*stays: tuple[float, ...]) -> list[Samples]:
    """One step of each rank, with so long stays in meetings of all of them at layer 0."""
    groups = [list(range(len(stays)))]
    return [
        Samples(
            probed=Trace(
                seconds=[1.0], forward=[[0.1]], backward=[[0.1]], stays=[[(0, 0, s) for s in each]], groups=groups
            )
        )
        for each in stays
    ]


def test_the_shortest_stay_is_the_exchange() -> None:
    shares = split(of_stays((0.5, 0.1), (0.2, 0.4), (0.3, 0.4)), layers=1)
    assert shares.exchange_of_all[:, 0].tolist() == pytest.approx([0.3, 0.3, 0.3])
    assert shares.wait_of_all[:, 0].tolist() == pytest.approx([0.3, 0.3, 0.4])
    assert shares.wait[:, 0, 0].tolist() == pytest.approx([0.3, 0.3, 0.4])
    assert shares.last.tolist() == [1, 1, 0]
    assert shares.caused[:, 0].tolist() == pytest.approx([0.6, 0.4, 0.0])


def test_meetings_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks 0, 1 had 2, 1 meetings in one step"):
        split(of_stays((0.5, 0.1), (0.2,)), layers=1)
    with pytest.raises(ValueError, match="rank 1 met the others and was not recorded"):
        split(of_stays((0.5,), (0.2,))[:1], layers=1)
