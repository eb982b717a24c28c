"""Checkpoints that replay: gradients and running statistics as without, to the bit, and one meeting a call."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import wholebatch
from checkpoints import (
    RUNS,
    Function,
    Run,
    draw,
    equal,
    plain,
    reentrant,
    replaying,
    train,
    without_early_stop,
)
from ranks import run_ranks
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting


@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_changes_no_bit_of_gradients_and_running_statistics(run: Run) -> None:
    assert equal(train(run), train(plain))


def test_selective_checkpointing_does_not_count_what_batch_norm_does() -> None:
    """It kept the first sum of the first pass, batch norm's own, and handed it out for the person's sum."""
    select = partial(create_selective_checkpoint_contexts, [torch.ops.aten.sum.dim_IntList])

    def train_selective(run: Run) -> list[Tensor]:
        layer, x = wholebatch.BatchNorm1d(3).double(), draw(5, 3)
        mask = torch.tensor([True, True, False, True, True])
        run(lambda x: (layer(x.exp(), mask=mask) * (x * x).sum(0)).sin(), x).sum().backward()
        return [x.grad, *[p.grad for p in layer.parameters()], *layer.buffers()]

    found = train_selective(
        lambda f, x: checkpoint(f, x, use_reentrant=False, context_fn=partial(wholebatch.replay, select))
    )
    assert equal(found, train_selective(plain))


@pytest.mark.parametrize("run", [replaying, without_early_stop, reentrant])
def test_a_retained_graph_is_passed_backward_again(run: Run) -> None:
    assert equal(train(run, backwards=3), train(plain, backwards=3))


# torch's own, about a first pass without gradients inside of another: rightly so there.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("outer", [replaying, without_early_stop, reentrant])
@pytest.mark.parametrize("inner", RUNS)
def test_checkpoints_nest(outer: Run, inner: Run) -> None:
    def deeper(function: Function, x: Tensor) -> Tensor:
        return inner(lambda h: inner(function, h), x)

    # Where use_reentrant=True is inside, autograd adds up the gradients of what is used twice in another order: a few
    # additions of numbers up to 10 in float64.
    expected, bound = train(plain), 1e-13 if inner is reentrant else 0
    for nested in (inner, deeper):
        for mine, without in zip(train(outer, inner=nested), expected, strict=True):
            torch.testing.assert_close(mine, without, rtol=bound, atol=bound)


def test_without_replay_the_statistics_move_twice() -> None:
    layer = wholebatch.BatchNorm1d(3).double()
    checkpoint(lambda x: layer(x).sin(), draw(4, 3), use_reentrant=False).sum().backward()
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("early_stop", [True, False])
def test_a_gradient_taken_inside_of_the_function(early_stop: bool) -> None:
    def train_with_penalty(run: Run) -> list[Tensor]:
        layer, x = wholebatch.BatchNorm1d(3).double(), draw(6, 3)

        def function(x: Tensor) -> Tensor:
            y = layer(x.exp())
            (slope,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
            return layer(slope.tanh()) * y

        run(function, x).square().sum().backward()
        return [x.grad, layer.weight.grad, *layer.buffers()]

    with set_checkpoint_early_stop(early_stop):
        assert equal(train_with_penalty(replaying), train_with_penalty(plain))


def test_a_checkpoint_can_be_differentiated_twice() -> None:
    def differentiate(run: Run) -> list[Tensor]:
        layer, x = wholebatch.BatchNorm1d(3, activation="relu").double(), draw(6, 3)
        y = run(lambda x: layer(x.exp()).tanh(), x)
        (slope,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return [slope, *torch.autograd.grad(slope.square().sum(), (x, layer.weight)), *layer.buffers()]

    assert equal(differentiate(replaying), differentiate(plain))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use of it
def test_forward_mode_in_a_checkpoint() -> None:
    def differentiate(run: Run) -> list[Tensor]:
        layer, x = wholebatch.BatchNorm1d(3).double(), draw(6, 3)
        with forward_ad.dual_level():
            y = run(lambda h: layer(h.exp()).sin(), forward_ad.make_dual(x, draw(6, 3, seed=1).detach()))
            tangent = forward_ad.unpack_dual(y).tangent
            (slope,) = torch.autograd.grad(tangent.square().sum(), x)
            return [tangent, forward_ad.unpack_dual(slope).primal, *layer.buffers()]

    assert equal(differentiate(replaying), differentiate(plain))


class Counting:
    """Two workers with the same examples, of which one is here; counts their meetings."""

    def __init__(self) -> None:
        self.meetings: list[tuple[str, str]] = []

    def merge(self, moments: Moments, meeting: Meeting) -> Moments:
        self.meetings.append((meeting.layer, meeting.phase))
        return moments.merge(moments)

    def sum(self, vectors: Tensor, meeting: Meeting) -> Tensor:
        self.meetings.append((meeting.layer, meeting.phase))
        return vectors + vectors


@pytest.mark.parametrize("run", RUNS)
def test_workers_meet_as_often_as_without_a_checkpoint(run: Run) -> None:
    without, within = Counting(), Counting()
    assert equal(train(run, process_group=within), train(plain, process_group=without))
    assert sorted(within.meetings) == sorted(without.meetings)
    assert len(without.meetings) == 2 * 3 * 2  # steps, calls in training mode, directions


def train_on_rank(rank: int) -> list[list[Tensor]]:
    found = []
    for run in (plain, replaying, reentrant):
        torch.manual_seed(0)
        layers = [wholebatch.BatchNorm1d(4, process_group="world", activation="relu") for _ in range(2)]
        net = nn.Sequential(nn.Linear(3, 4), layers[0], nn.Linear(4, 4), layers[1]).double()
        x = draw(7, 3)
        mine = (x[:2] if rank == 0 else x[2:]).detach().requires_grad_()
        run(net, mine).square().sum().backward()
        assert mine.grad is not None
        found.append([mine.grad, *[p.grad for p in net.parameters() if p.grad is not None], *net.buffers()])
    return found


def test_ranks_with_a_checkpoint_find_what_they_find_without() -> None:
    ranks = [outcome.value for outcome in run_ranks(train_on_rank, 2)]
    for expected, *found in ranks:
        assert all(equal(with_checkpoint, expected) for with_checkpoint in found)
    assert not torch.equal(ranks[0][0][0][:2], ranks[1][0][0][:2])


def test_checkpoint_sequential_with_modules_wrapped() -> None:
    def train_sequential(reentrant: bool | None) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(*[nn.Sequential(nn.Linear(3, 3), wholebatch.BatchNorm1d(3)) for _ in range(4)]).double()
        x = draw(6, 3)
        parts = net if reentrant is None else [wholebatch.replayed(part) for part in net]
        y = net(x) if reentrant is None else checkpoint_sequential(parts, 2, x, use_reentrant=reentrant)
        y.square().sum().backward()
        return [x.grad, *[p.grad for p in net.parameters()], *net.buffers()]

    assert equal(train_sequential(True), train_sequential(None))
    assert equal(train_sequential(False), train_sequential(None))
