"""Ordinary steps over ranks of one host: one compiled call each way, which meets, merges and finishes."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kernel_inputs import fill
from ranks import run_ranks
from test_ordinary import count_own_calls, make_layer, way_of
from wholebatch import BatchNorm1d
from wholebatch.kernels.batch_norm import steps
from wholebatch.sharing import MeetingError
from wholebatch.sharing.watch import watching

pytestmark = pytest.mark.skipif(
    steps() is None or sys.platform != "linux",
    reason="the compiled part is missing here, or torch is too old for it, or there is no shared memory",
)

CHANNELS = 20
PARTS = {2: [0, 9, 13], 4: [0, 5, 5, 6, 13]}  # where each rank's rows begin and end, of 13; one of four has none
SLOW = 0.15  # seconds: longer than one call waits before it goes back to Python


def step(layer: torch.nn.Module, z: Tensor, g: Tensor, residual: Tensor, late: tuple[float, float]) -> list[Tensor]:
    """A step before whose forward and backward call this rank sleeps."""
    leaves = [x.detach().clone().requires_grad_() for x in (z, residual)]
    layer.zero_grad()
    time.sleep(late[0])
    y = layer(*leaves)
    time.sleep(late[1])
    y.backward(g)
    gradients = [x.grad for x in (*leaves, *layer.parameters())]
    return [y.detach(), *gradients, *(b.clone() for b in layer.buffers())]


def see_nothing(ranks: tuple[int, ...], header: bytes, seconds: float) -> None:
    """Somebody who watches the meetings, which then are held from Python."""


def steps_of(rank: int, ends: list[int], dtype: torch.dtype) -> dict[str, Any]:
    rows = slice(ends[rank], ends[rank + 1])
    z, g, r = (fill((13, CHANNELS), dtype, seed=seed)[rows] for seed in range(3))

    def layer() -> torch.nn.Module:
        return make_layer(CHANNELS, dtype, process_group="world", activation="relu")

    found = {}
    with watching(see_nothing):
        found["watched"] = step(layer(), z, g, r, (0, 0))
    found["at once"] = step(layer(), z, g, r, (0, 0))
    if rank == 0:  # the only one that does not go the usual way
        turned = [x.t().contiguous().t() for x in (z, r)]
        found["mixed"] = step(layer(), turned[0], g, turned[1], (0, 0))
    else:
        found["mixed"] = step(layer(), z, g, r, (0, 0))
    for late in range(dist.get_world_size()):
        sleep = (SLOW, SLOW) if rank == late else (0.0, 0.0)
        found[f"{late} late"] = step(layer(), z, g, r, sleep)
    other = layer()
    y = other(z.clone().requires_grad_(), r)
    with watching(see_nothing):  # from between forward and backward on
        y.backward(g)
    found["weights"] = [p.grad for p in other.parameters()]
    found["way"] = way_of(y)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ranks", list(PARTS))
def test_steps_at_once_late_and_watched_have_the_same_bits(ranks: int, dtype: torch.dtype) -> None:
    for rank, outcome in enumerate(run_ranks(steps_of, ranks, PARTS[ranks], dtype)):
        found = outcome.value
        expected = found.pop("watched")
        empty = PARTS[ranks][rank] == PARTS[ranks][rank + 1]
        assert found.pop("way") == ("_DirectBackward" if empty else "_OrdinaryBackward")
        weights = found.pop("weights")
        assert all(torch.equal(a, b) for a, b in zip(weights, expected[3:5], strict=True))
        for name, tensors in found.items():
            assert len(tensors) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True)), (rank, name)


def one_transport(rank: int) -> list[Tensor]:
    z, g, r = (fill((12, CHANNELS), torch.float32, seed=seed)[rank * 6 : rank * 6 + 6] for seed in range(3))
    return step(make_layer(CHANNELS, process_group="world", activation="relu"), z, g, r, (0, 0))


def test_the_bits_are_those_over_gloo() -> None:
    wanted = [{"WHOLEBATCH_TRANSPORT": name} for name in ("shared_memory", "gloo")]
    found, expected = (run_ranks(one_transport, 2, environment=environment) for environment in wanted)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.value, other.value, strict=True))


def change_group(rank: int) -> list[bool]:
    """A layer that is shared, local and shared again, and renamed meanwhile."""
    layer = make_layer(CHANNELS, process_group="world")
    z = fill((12, CHANNELS), torch.float32)[rank * 6 : rank * 6 + 6]
    whole = [layer(z)]
    layer.process_group = None
    own = layer(z)
    layer.process_group = dist.group.WORLD
    layer._name = "renamed"
    whole.append(layer(z))
    return [torch.equal(*whole), not torch.equal(own, whole[0])]


def test_a_change_of_the_group_counts_in_the_next_step() -> None:
    assert [outcome.value for outcome in run_ranks(change_group, 2)] == [[True, True]] * 2


def meet_by_name(rank: int) -> str:
    layer = BatchNorm1d(4, process_group="world")
    layer(torch.randn(3, 4))
    layer._name = f"layer of rank {rank}"
    with pytest.raises(MeetingError) as raised:
        layer(torch.randn(3, 4))
    return str(raised.value)


def test_a_renamed_layer_meets_by_its_new_name() -> None:
    for outcome in run_ranks(meet_by_name, 2):
        assert "layer of rank 0" in outcome.value
        assert "layer of rank 1" in outcome.value


def refuse_one_value(rank: int) -> str:
    layer = BatchNorm1d(4, process_group="world")
    with pytest.raises(ValueError, match="more than 1 value per channel") as raised:
        layer(torch.randn(1 - rank, 4))
    assert layer.num_batches_tracked == 0
    layer(torch.randn(2, 4))  # the ranks have met, and go on
    return str(raised.value)


def test_one_value_over_all_ranks_is_refused_and_the_ranks_go_on() -> None:
    for outcome in run_ranks(refuse_one_value, 2):
        assert "the whole mini-batch has 1" in outcome.value


def interrupt(rank: int) -> str:
    """Rank 0 gets Ctrl-C while it waits for rank 1, which comes later."""
    layer, z = BatchNorm1d(4, process_group="world"), torch.randn(3, 4)
    layer(z)
    if rank == 0:
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            layer(z)
    else:
        time.sleep(0.5)
        layer(z)  # for this one rank 0 had brought its part
    with pytest.raises(MeetingError) as raised:
        layer(z)
    return str(raised.value)


def test_an_interrupted_rank_is_named_to_the_others() -> None:
    for outcome in run_ranks(interrupt, 2):
        assert "rank 0 raised KeyboardInterrupt" in outcome.value


# As for one process, and the layer's name, who shares, whether it is open, the headers' dtype and the two calls that
# meet.
MOST_CALLS = 15


def count_calls(rank: int) -> list[str]:
    layer, z = BatchNorm1d(4, process_group="world", activation="relu"), torch.randn(3, 4, requires_grad=True)
    g = torch.randn(3, 4)
    layer(z).backward(g)
    return count_own_calls(lambda: layer(z).backward(g))


def test_a_shared_step_is_few_calls_in_python() -> None:
    for outcome in run_ranks(count_calls, 2):
        assert "_train_together" in outcome.value
        assert len(outcome.value) <= MOST_CALLS, outcome.value
