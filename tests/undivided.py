"""A net in lockstep against the same net on the undivided mini-batch.

Tolerances: float64, statistics of some hundred numbers of size up to 100 and a few layers. A sum of n terms taken in
another order differs by up to n * eps of the sum of their sizes: 500 * 2e-16 = 1e-13 relative; three layers and their
derivatives multiply that by tens. 1e-11 relative to the largest entry leaves room, and the smallest mistake (a part's
own variance, n in place of n - 1) is above 1e-3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import wholebatch


class Net(nn.Module):
    """Convolutions, a layer used twice, one that averages cumulatively, one in evaluation mode, residual branches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.twice = wholebatch.BatchNorm2d(4)
        self.fused = wholebatch.BatchNorm2d(4, activation="relu", momentum=None)
        self.plain = wholebatch.BatchNorm2d(4, affine=False, track_running_stats=False)
        self.frozen = wholebatch.BatchNorm2d(4).eval()
        self.head = nn.Linear(4, 2)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        h = self.twice(self.first(x)).relu()
        h = h + self.twice(self.second(h)).relu_()
        h = self.fused(self.second(h), h)
        return self.frozen(self.plain(self.first(x)) + self.fused(h))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)).sin())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float = 1e-11) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def compare(
    net: nn.Module,
    x: Tensor,
    sizes: Sequence[int],
    *,
    loss: Callable[[Tensor], Tensor] = lambda y: y.square().sum(),
    offload: Any = "none",
    steps: int = 2,
    reference: nn.Module | None = None,
) -> None:
    """Some steps in lockstep and undivided: all is the same."""
    reference = copy.deepcopy(net) if reference is None else reference
    for _ in range(steps):
        ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
        outputs = wholebatch.lockstep(net, ours.split(list(sizes)), offload=offload)
        assert [len(y) for y in outputs] == list(sizes)
        y = reference(theirs)
        assert_same([torch.cat(outputs)], [y])
        loss(torch.cat(outputs)).backward()
        loss(y).backward()
        assert_same(
            [ours.grad, *(p.grad for p in net.parameters())], [theirs.grad, *(p.grad for p in reference.parameters())]
        )
        assert_same(list(net.buffers()), list(reference.buffers()))
