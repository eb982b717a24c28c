"""What replay holds on to, what it refuses, and who does not see it."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,
)

import wholebatch
from checkpoints import (
    Run,
    draw,
    equal,
    reentrant,
    replaying,
    selective,
    without_early_stop,
)
from wholebatch.sharing.replay import _Entry, attend


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
