"""What the tests of ``save="input"`` share: nets, a training run, and counters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import wholebatch

Layer = partial(wholebatch.BatchNorm2d, 4)


class Held(TorchDispatchMode):
    """Counts the bytes of the storages made within that are alive; what was there before does not count."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.before = {x.untyped_storage()._cdata for x in before}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self.before:
                reference = StorageWeakRef(leaf.untyped_storage())
                self.made[reference.cdata] = reference, leaf.untyped_storage().nbytes()
        return result

    def bytes(self, at_least: int = 0) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired() and size >= at_least)


class Applied:
    """Counts how often outputs of batch norm are formed again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from wholebatch.recomputing.recipes import Plan

        self.count, make = 0, Plan.make

        def counted(plan: Any, *args: Any) -> Tensor:
            before, y = plan.made, make(plan, *args)
            self.count += plan.made is not before
            return y

        monkeypatch.setattr(Plan, "make", counted)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def chain(save: Any, layers: int = 8, **keywords: Any) -> nn.Sequential:
    torch.manual_seed(0)
    conv = partial(nn.Conv2d, 4, 4, 3, padding=1, bias=False)
    return nn.Sequential(*[m for _ in range(layers) for m in (conv(), Layer(save=save, activation="relu", **keywords))])


class Net(nn.Module):
    """What may come after a layer: convolutions, views, several users, activations of all kinds, residuals, masks."""

    def __init__(self, save: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        activations = ["relu", nn.LeakyReLU(0.2), None, "gelu", "relu", "relu", None, "relu"]
        self.norms = nn.ModuleList(Layer(save=save, activation=activation) for activation in activations)
        self.frozen = Layer(save=save, activation="relu").eval()
        self.head = nn.Linear(4 * 36, 3)
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        n, (a, b, c, d) = self.norms, self.convs
        h = n[0](a(x))
        h = n[1](b(h)) * h  # two users
        h = self.inplace(n[2](c(h)))
        h = n[3](d(h))
        h = self.frozen(a(h))
        h = n[4](b(h), h)  # a chain of residuals
        h = n[5](c(h), h)
        h = n[6](d(h), h)
        k = a(h)
        h = n[7](n[0](k), k)  # batch norm of batch norm
        part = h[:, 1:3].transpose(2, 3) @ h[:, :2]  # views
        h = n[1](part.repeat(1, 2, 1, 1), mask=x[:, 0] > -1)
        return self.head(h.flatten(1))


def train(
    save: Any,
    dtype: torch.dtype = torch.float32,
    scope: Callable[[], AbstractContextManager[Any]] = wholebatch.saving_inputs,
    backwards: int = 1,
    call: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: net(x),
    net: nn.Module | None = None,
) -> list[Tensor]:
    net, x = net or Net(save).to(dtype), draw(3, 4, 6, 6, dtype=dtype).requires_grad_()
    with scope():
        y = call(net, x)
    for again in reversed(range(backwards)):
        y.square().sum().backward(retain_graph=again > 0)
    return [y, x.grad, *[p.grad for p in net.parameters()], *net.buffers()]  # type: ignore[list-item]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
