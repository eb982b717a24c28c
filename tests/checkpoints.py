"""What the tests of replay share: a net, a training run, and the kinds of checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import wholebatch

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
