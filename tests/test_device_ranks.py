"""The device engine over shards and ranks, on the CPU over gloo: the same calls that NCCL gets on GPUs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from oracle import assert_near
from ranks import run_ranks
from small_problem import copy_of, same
from test_spread_reference import SPREAD, TOLERANCE, WHOLE, Case, train, train_all
from wholebatch import Loss, Optimizer
from wholebatch.feedforward.device.meetings import Meetings, _check_backend
from wholebatch.feedforward.engine import NonFiniteLossError
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.spread import Spread
from wholebatch.sharing import MeetingError

CASES = {name: replace(case, engine="device") for name, case in WHOLE.items()}
SYNCS = {name: replace(case, engine="device") for name, case in SPREAD.items() if case.sync in ("all", "none")}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {name: train(None, case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dtype == torch.float64])
def test_the_oracles_numbers_over_shards(name: str, alone: dict[str, Any]) -> None:
    case, (losses, state) = CASES[name], alone[name]
    expected, oracle = case.oracle(1)
    tolerance = TOLERANCE * (100 if case.mean else 1)
    assert losses == pytest.approx(expected, rel=tolerance)
    assert_near(state, oracle.state() | oracle.optimizer_state(), tolerance, floor=tolerance)


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_ends_with_the_same_bits(ranks: int, alone: dict[str, Any]) -> None:
    for rank, outcome in enumerate(run_ranks(train_all, ranks, "world", list(CASES.values()))):
        for (name, (losses, state)), (own_losses, own) in zip(alone.items(), outcome.value, strict=True):
            assert own_losses == losses, (name, rank)
            assert same(own, state), (name, rank)


def test_whose_statistics_are_shared_is_the_oracles() -> None:
    outcomes = [outcome.value for outcome in run_ranks(train_all, 4, "world", list(SYNCS.values()))]
    for index, (name, case) in enumerate(SYNCS.items()):
        expected, oracle = case.oracle(4)
        losses, state = outcomes[0][index]
        tolerance = TOLERANCE * (100 if case.mean else 1)
        assert losses == pytest.approx(expected, rel=tolerance), name
        assert_near(state, oracle.state() | oracle.optimizer_state(), tolerance, floor=tolerance)
        for rank, outcome in enumerate(outcomes):
            assert outcome[index][0] == losses, (name, rank)
            assert same(outcome[index][1], state), (name, rank)


def order_of_calls(rank: int) -> list[str]:
    """What a step calls, in order, as it goes back through a net of two hidden layers."""
    case = Case(loss=Loss("mse"), engine="device", shards=2)
    engine, data, deal = case.begin("world")
    said: list[str] = []
    gather, multiply = dist.all_gather_into_tensor, torch.mm

    def gathering(out: Any, own: Any, **how: Any) -> Any:
        assert how["async_op"]
        said.append(f"gather {out.shape[1]}")
        return gather(out, own, **how)

    def multiplying(a: Any, b: Any, **how: Any) -> Any:
        said.append(f"weights {a.shape[0]}x{b.shape[1]}")
        return multiply(a, b, **how)

    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    gather = getattr(dist, name)
    setattr(dist, name, gathering)
    torch.mm = multiplying
    rates = np.full(1, 0.1)
    rows = deal.offsets[:2]
    engine.train_epoch(data, deal.order(0, 0), rows, rates, counts=deal.counts[:1])
    return said


def test_the_backward_exchange_is_under_way_while_weights_above_find_their_gradient() -> None:
    """Forward: 1 + 2 C numbers a layer (15, 13). Backward: 2 C (12, 14), each before the weights behind the norm."""
    for outcome in run_ranks(order_of_calls, 2):
        said = outcome.value
        assert said[:2] == ["gather 15", "gather 13"]
        assert said[2:7] == ["gather 12", "weights 3x6", "gather 14", "weights 6x7", "weights 7x5"]


def overflow(_: int, group: str | None) -> tuple[str, bool]:
    case = Case(activation="relu", optimizer=Optimizer("sgd", 1e200), engine="device")
    engine, data, deal = case.begin(group)
    before = copy_of(engine.model)
    with pytest.raises(NonFiniteLossError) as error:
        engine.train_epoch(data, deal.order(0, 0), deal.offsets, np.full(deal.steps, 1e200), counts=deal.counts)
    return str(error.value), same(before, copy_of(engine.model)) and engine.step == 0


def test_a_loss_that_is_not_finite_is_so_on_every_rank() -> None:
    said, kept = zip(*(outcome.value for outcome in run_ranks(overflow, 2, "world")), strict=True)
    assert kept == (True, True)
    assert said[0] == said[1]
    assert "the loss is not finite in step 2; the first value that is not finite appeared in layer" in said[0]


def be_left(rank: int) -> tuple[str, bool]:
    """Rank 1 is gone in the second epoch, without a word."""
    engine, data, deal = Case(engine="device", shards=2).begin("world")
    rates = np.full(deal.steps, 0.01)
    engine.train_epoch(data, deal.order(0, 0), deal.offsets, rates, counts=deal.counts)
    if rank == 1:
        os._exit(9)
    before = copy_of(engine.model)
    with pytest.raises(MeetingError) as error:
        engine.train_epoch(data, deal.order(0, 1), deal.offsets, rates, counts=deal.counts)
    return str(error.value), same(before, copy_of(engine.model)) and engine.step == deal.steps


def test_a_rank_that_is_gone_is_an_error_of_a_meeting() -> None:
    left, gone = run_ranks(be_left, 2)
    said, kept = left.value
    assert gone.exit_code == 9
    assert kept
    assert "a rank that ended or was cut off is the usual cause" in said


def refuse(rank: int) -> list[str]:
    """What is said of a way of sharing, and of a device, that ranks on a device do not have."""
    said = []
    for sync in ("late", "group"):
        with pytest.raises(ValueError, match="sync is") as error:
            Meetings(Peers(Spread(sync=sync, group_size=1 if sync == "group" else None), "world"), torch.device("cpu"))  # type: ignore[arg-type]
        said.append(str(error.value))
    group = dist.group.WORLD
    assert group is not None
    with pytest.raises(ValueError, match="no backend") as error:
        _check_backend(group, torch.device("xpu"))
    return [*said, str(error.value)]


def test_what_ranks_on_a_device_do_not_have_is_said() -> None:
    for outcome in run_ranks(refuse, 2):
        late, group, backend = outcome.value
        assert "sync is 'late'; ranks whose nets are trained on a device" in late
        assert "choose one of these, or train on the CPU" in group
        assert "the process group has no backend for xpu" in backend
