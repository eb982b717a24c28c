"""Uneven ends: inside Join, training on ranks with more and fewer batches is that of the batches that there are."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from ranks import run_ranks
from wholebatch.layers import BatchNorm1d
from wholebatch.sharing import JoinBatchNorms

EPOCHS = 2


def build(shared: bool) -> nn.Sequential:
    torch.manual_seed(0)
    kind = BatchNorm1d if shared else nn.BatchNorm1d
    model = nn.Sequential(nn.Linear(3, 5), kind(5), nn.ReLU(), nn.Linear(5, 5), kind(5), nn.Linear(5, 1)).double()
    if shared:
        for module in model:
            if isinstance(module, BatchNorm1d):
                module.process_group = "world"
    return model


def batches(rank: int, ranks: int) -> list[Tensor]:
    """Rank 0 has one batch; of the others, each one more than the one after it."""
    generator = torch.Generator().manual_seed(10 + rank)
    count = 1 + ranks - rank if rank else 1
    return [torch.randn(4 + rank, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def train_part(rank: int, parallel: bool, broadcast_buffers: bool) -> dict[str, Tensor]:
    model = build(shared=True)
    called = DistributedDataParallel(model, broadcast_buffers=broadcast_buffers) if parallel else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    joined = [JoinBatchNorms(called), called] if parallel else [JoinBatchNorms(called)]
    for _ in range(EPOCHS):
        with Join(joined):
            for x in batches(rank, dist.get_world_size()):
                optimizer.zero_grad()
                called(x).square().sum().backward()
                if parallel:  # alone, nobody adds the gradients up
                    optimizer.step()
    return model.state_dict()


def train_whole(ranks: int, parallel: bool) -> dict[str, Tensor]:
    """Every step on the batches that are left; the gradient is that of DistributedDataParallel, over all ranks."""
    model = build(shared=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parts = [batches(rank, ranks) for rank in range(ranks)]
    for _ in range(EPOCHS):
        for step in range(max(map(len, parts))):
            optimizer.zero_grad()
            x = torch.cat([part[step] for part in parts if step < len(part)])
            (model(x).square().sum() / ranks).backward()
            if parallel:
                optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(
    ("ranks", "transport", "parallel", "broadcast_buffers"),
    [
        (2, "", True, True),
        (2, "", False, False),
        (2, "gloo", True, False),
        (2, "gloo", False, False),
        (4, "", True, False),
        (4, "gloo", True, True),
    ],
)
def test_ranks_with_fewer_batches_take_part_with_none(
    ranks: int, transport: str, parallel: bool, broadcast_buffers: bool
):
    environment = {"WHOLEBATCH_TRANSPORT": transport}
    outcomes = run_ranks(train_part, ranks, parallel, broadcast_buffers, environment=environment)
    whole = train_whole(ranks, parallel)
    for outcome in outcomes:
        state = outcome.value
        assert state["1.num_batches_tracked"] == whole["1.num_batches_tracked"] == EPOCHS * ranks
        for name, expected in whole.items():
            # Some roundings of numbers of size 1 in each of at most 8 steps.
            torch.testing.assert_close(state[name], expected, rtol=1e-12, atol=1e-13)


def list_last(rank: int) -> None:
    model = DistributedDataParallel(build(shared=True))
    with Join([model, JoinBatchNorms(model)]):
        model(torch.zeros(3, 3, dtype=torch.float64) + torch.arange(3.0)[:, None])


def test_another_order_is_refused():
    for outcome in run_ranks(list_last, 2):
        assert "ValueError: JoinBatchNorms must come first in Join's list" in outcome.error


def die_while_others_train(rank: int) -> None:
    model = build(shared=True)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(rank)).double()
    with Join([JoinBatchNorms(model)]):
        if rank == 0:
            return  # out of data at once
        model(x)
        if rank == 2:
            raise ValueError("no such file")
        model(x)


@pytest.mark.parametrize("transport", ["", "gloo"])
def test_a_rank_that_stands_by_learns_that_another_failed(transport: str):
    outcomes = run_ranks(die_while_others_train, 3, environment={"WHOLEBATCH_TRANSPORT": transport}, group_timeout=20)
    assert "rank 2 raised ValueError: no such file" in outcomes[1].error
    # Where rank 0 noticed first, it had given up by then.
    assert re.search("out of data, standing by|gave up, because rank 2 raised", outcomes[1].error)
    assert outcomes[2].error == "ValueError: no such file"
    # Rank 0 sits in a collective of Join's own, which fails when the others' processes end, or in ours.
    assert outcomes[0].error
    assert outcomes[0].exit_code == 1
