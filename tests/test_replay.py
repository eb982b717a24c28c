"""Checkpoints that replay: gradients and running statistics as without, to the bit, and one meeting a call."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import wholebatch
from ranks import run_ranks
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting
from wholebatch.sharing.replay import _Entry, attend

Function = Callable[[Tensor], Tensor]
Run = Callable[[Function, Tensor], Tensor]


class Net(nn.Module):
    """Convolutions, a layer used twice, one that averages cumulatively, one in evaluation mode, a residual, dropout."""

    def __init__(self, process_group: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = partial(wholebatch.BatchNorm2d, 4, process_group=process_group)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.twice, self.cumulative, self.frozen = layer(activation="relu"), layer(momentum=None), layer()
        self.frozen.eval()
        self.dropout = nn.Dropout(0.4)
        self.double()

    def inner(self, h: Tensor) -> Tensor:
        return self.dropout(self.twice(self.second(h), h))

    def forward(self, x: Tensor, run: Run = lambda f, h: f(h)) -> Tensor:
        h = self.twice(self.first(x))
        h = run(self.inner, h) + 0.1 * h
        return self.frozen(self.cumulative(h)).sin()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def train(run: Run, backwards: int = 1, process_group: Any = None, inner: Run = lambda f, h: f(h)) -> list[Tensor]:
    """Two steps through a checkpoint: outputs, gradients and buffers."""
    net, found = Net(process_group), []
    for step in range(2):
        x = draw(5, 3, 6, 6, seed=step)
        torch.manual_seed(step)
        y = run(partial(net, run=inner), x)
        for again in reversed(range(backwards)):
            (y * y).sum().backward(retain_graph=again > 0)
        assert x.grad is not None
        found += [y, x.grad]
    return [*found, *[p.grad for p in net.parameters() if p.grad is not None], *net.buffers()]


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def plain(function: Function, x: Tensor) -> Tensor:
    return function(x)


def replaying(function: Function, x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=False, context_fn=wholebatch.replay)


def without_early_stop(function: Function, x: Tensor) -> Tensor:
    with set_checkpoint_early_stop(False):
        return replaying(function, x)


def reentrant(function: Function, x: Tensor) -> Tensor:
    return checkpoint(wholebatch.replayed(function), x, use_reentrant=True)


def selective(function: Function, x: Tensor) -> Tensor:
    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        # All that can be kept: dropout changes in place what it allocates, which selective checkpointing refuses.
        keep = operation != torch.ops.aten.empty_like.default and not operation._schema.is_mutable
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    select = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(function, x, use_reentrant=False, context_fn=partial(wholebatch.replay, select))


RUNS = [replaying, without_early_stop, reentrant, selective]


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


def train_on_rank(rank: int, name: str) -> list[Tensor]:
    run = {"plain": plain, "replaying": replaying, "reentrant": reentrant}[name]
    torch.manual_seed(0)
    layers = [wholebatch.BatchNorm1d(4, process_group="world", activation="relu") for _ in range(2)]
    net = nn.Sequential(nn.Linear(3, 4), layers[0], nn.Linear(4, 4), layers[1]).double()
    x = draw(7, 3)
    mine = (x[:2] if rank == 0 else x[2:]).detach().requires_grad_()
    run(net, mine).square().sum().backward()
    assert mine.grad is not None
    return [mine.grad, *[p.grad for p in net.parameters() if p.grad is not None], *net.buffers()]


def test_ranks_with_a_checkpoint_find_what_they_find_without() -> None:
    expected, *found = (
        [outcome.value for outcome in run_ranks(train_on_rank, 2, name)] for name in ("plain", "replaying", "reentrant")
    )
    for ranks in found:
        assert all(map(equal, ranks, expected))
    assert not torch.equal(expected[0][0][:2], expected[1][0][:2])


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


def test_a_wrapper_serves_one_checkpoint() -> None:
    layer = wholebatch.BatchNorm1d(3).double()
    function = wholebatch.replayed(layer)
    checkpoint(function, draw(4, 3), use_reentrant=True)
    with pytest.raises(ValueError, match=r"a second time outside of a backward pass.*wrap it for each"):
        checkpoint(function, draw(4, 3), use_reentrant=True)
    assert layer.num_batches_tracked == 1


@pytest.fixture
def layers() -> list[nn.Module]:
    return [wholebatch.BatchNorm1d(3).double().equip(process_group=None, activation=None, save=None, name=name)
            for name in ("one", "two")]  # fmt: skip


@pytest.mark.parametrize("run", [without_early_stop, reentrant])
def test_a_recomputation_that_differs_is_told(run: Run, layers: list[nn.Module]) -> None:
    one, two = layers
    calls: list[list[nn.Module]] = []

    def function(x: Tensor) -> Tensor:
        for layer in calls.pop(0):
            x = layer(x).sin()
        return x

    for first, again, message in [
        ([one], [two], r"batch norm 1 was one on \(4, 3\) in training in the first pass and is two on \(4, 3\)"),
        ([one], [one, two], r"calls two on \(4, 3\) in training after the 1 batch norms of the first pass"),
        ([one, two], [one], r"ends before two on \(4, 3\) in training, its batch norm 2 of before"),
    ]:
        calls[:] = [first, again]
        y = run(function, draw(4, 3))
        with pytest.raises(ValueError, match=message):
            y.sum().backward()
        assert attend("any", (4, 3), True) is None  # nothing is left open


def test_evaluation_mode_before_backward_is_told(layers: list[nn.Module]) -> None:
    one, _ = layers
    y = replaying(lambda x: one(x).sin(), draw(4, 3))
    one.eval()
    with pytest.raises(ValueError, match=r"was one .* in training in the first pass and is one .* in evaluation now"):
        y.sum().backward()


def test_a_function_that_raises_leaves_nothing_open() -> None:
    layer = wholebatch.BatchNorm1d(3).double()

    def function(x: Tensor) -> Tensor:
        raise LookupError(str(layer(x).shape))

    for run in (replaying, reentrant, selective):
        with pytest.raises(LookupError):
            run(function, draw(4, 3))
        assert attend("any", (4, 3), True) is None
    y = replaying(layer, draw(4, 3, seed=1))
    y.square().sum().backward()
    assert layer.num_batches_tracked == 4


def test_a_composed_context_that_cannot_be_entered_opens_nothing() -> None:
    class Broken:
        def __enter__(self) -> None:
            raise LookupError

        def __exit__(self, *raised: object) -> None:
            raise AssertionError("was not entered")

    with pytest.raises(LookupError):
        checkpoint(
            torch.sin, draw(2), use_reentrant=False, context_fn=partial(wholebatch.replay, lambda: (Broken(), Broken()))
        )
    assert attend("any", (4, 3), True) is None


def test_threads_keep_apart_and_may_hand_a_graph_over() -> None:
    """Each thread's forward waits in the middle for the other's; each then passes the other's graph backward."""
    together, losses, found = threading.Barrier(2), {}, {}

    def work(name: int) -> None:
        layer, x = wholebatch.BatchNorm1d(3).double(), draw(5 + name, 3, seed=name)

        def function(h: Tensor) -> Tensor:
            h = layer(h.exp())
            if name not in losses:
                together.wait(30)
            return layer(h.tanh())

        losses[name] = (replaying(function, x) ** 3).sum()
        together.wait(30)
        losses[1 - name].backward()
        together.wait(30)
        found[name] = [x.grad, layer.weight.grad, *layer.buffers()]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name in range(2):
        layer, x = wholebatch.BatchNorm1d(3).double(), draw(5 + name, 3, seed=name)
        (layer(layer(x.exp()).tanh()) ** 3).sum().backward()
        assert equal(found[name], [x.grad, layer.weight.grad, *layer.buffers()])


def test_another_task_does_not_see_an_open_checkpoint() -> None:
    seen = []

    async def other() -> None:
        seen.append(attend("any", (4, 3), True))

    def function(x: Tensor) -> Tensor:
        seen.append(attend("any", (4, 3), True))
        thread = threading.Thread(target=lambda: asyncio.run(other()))
        thread.start()
        thread.join(30)
        return x.sin()

    replaying(function, draw(2))
    assert seen[0] is not None
    assert seen[1] is None


def test_compiled_with_the_checkpoint_in_it() -> None:
    def train_compiled(compiled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), wholebatch.BatchNorm1d(4, activation="relu"), nn.Linear(4, 2)).double()
        x = draw(6, 3)

        def function(x: Tensor) -> Tensor:
            return replaying(net, x) if compiled else net(x)

        for _ in range(2):
            (torch.compile(function, backend="aot_eager") if compiled else function)(x).square().sum().backward()
        return [x.grad, *[p.grad for p in net.parameters()], *net.buffers()]

    for mine, expected in zip(train_compiled(True), train_compiled(False), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)  # float64, other operations


def test_a_block_compiled_by_itself_is_refused() -> None:
    block = torch.compile(wholebatch.BatchNorm1d(3).double(), backend="aot_eager")
    with pytest.raises(ValueError, match=r"a compiled block cannot replay\. Compile a function that has"):
        replaying(block, draw(4, 3))
    block(draw(4, 3)).sum().backward()


def test_a_record_goes_with_its_graph() -> None:
    def entries() -> int:
        return sum(type(thing) is _Entry for thing in gc.get_objects())

    layer, before = wholebatch.BatchNorm1d(3).double(), entries()
    gc.disable()  # by counting references alone, without waiting for the collector
    try:
        y = replaying(lambda h: layer(layer(h)), draw(4, 3)).sum()
        assert entries() == before + 2
        y.backward()
        del y
        assert entries() == before
    finally:
        gc.enable()
