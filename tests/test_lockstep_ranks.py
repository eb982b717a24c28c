"""The whole mini-batch over ranks and micro-batches: the undivided mini-batch's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import wholebatch
from ranks import run_ranks
from test_lockstep import assert_same, draw

# rows of each micro-batch, by rank: uneven, and different numbers of them
SPLITS = [[[4, 1, 3], [5, 6]], [[2, 2], [0, 15]], [[8], [3, 0, 4, 4]]]
CLASSES = 3


def make_net(process_group: Any) -> nn.Sequential:
    torch.manual_seed(0)

    def norm() -> nn.Module:
        return wholebatch.BatchNorm1d(8, activation="relu", process_group=process_group)

    return nn.Sequential(nn.Linear(3, 8), norm(), nn.Linear(8, 8), norm(), nn.Linear(8, CLASSES)).double()


def work(rank: int, splits: list[list[int]], distributed: bool) -> list[Tensor]:
    net = make_net("world")
    x, y = draw(19, 3), torch.arange(19) % CLASSES
    start = sum(splits[0]) if rank else 0
    x, y = x[start : start + sum(splits[rank])], y[start : start + sum(splits[rank])]
    model = DistributedDataParallel(net) if distributed else net
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        outputs = wholebatch.lockstep(model, x.split(splits[rank]))
        # The mini-batch's mean; DistributedDataParallel takes the mean over 2 ranks.
        loss = nn.functional.cross_entropy(torch.cat(outputs), y, reduction="sum") / 19
        (loss * 2 if distributed else loss).backward()
        if not distributed:
            for p in net.parameters():
                torch.distributed.all_reduce(p.grad)
        optimizer.step()
    return list(net.state_dict().values())


@pytest.mark.parametrize("distributed", [False, True], ids=["all_reduce", "DistributedDataParallel"])
@pytest.mark.parametrize("splits", SPLITS, ids=str)
def test_ranks_and_micro_batches_make_one_mini_batch(splits: list[list[int]], distributed: bool) -> None:
    net = make_net(None)
    x, y = draw(19, 3), torch.arange(19) % CLASSES
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    for outcome in run_ranks(work, 2, splits, distributed):
        assert_same(outcome.value, list(net.state_dict().values()))


def fail_in_one_part(rank: int) -> str:
    net = make_net("world")
    before = [value.clone() for value in net.state_dict().values()]

    def model(x: Tensor) -> Tensor:
        h = net[1](net[0](x))
        if rank == 1 and len(x) == 2:
            raise KeyError("rank 1, its second part")
        return net[3](net[2](h))

    try:
        wholebatch.lockstep(model, draw(5, 3).split([3, 2]))
    except (KeyError, wholebatch.MeetingError) as error:
        assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
        raised = type(error).__name__
        if rank == 1:
            raise  # the rank ends, and the other is told
        return raised
    return "nothing"


def test_a_part_that_fails_ends_the_other_rank_with_a_diagnosis() -> None:
    outcomes = run_ranks(fail_in_one_part, 2)
    assert outcomes[0].value == "MeetingError"
    assert outcomes[1].error.startswith("KeyError: 'rank 1, its second part'")
