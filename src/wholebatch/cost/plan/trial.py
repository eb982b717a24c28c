"""A training step that is measured: linear, batch norm and ReLU for each hidden layer, a linear output, SGD.

One step goes from the end of one sum of gradients to the end of the next::

    update | forward, with a meeting in each batch norm | loss, backward, likewise | sum of all gradients
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from wholebatch.cost.plan.clocked import Clocked
from wholebatch.layers import BatchNorm1d

FEATURES, CLASSES = 64, 10
Mode = Literal["alone", "all", "none"]
"""``alone``: one rank computes, meets nobody and adds up nothing. ``all``: batch norm over all ranks, and gradients
added up. ``none``: each rank's own batch norm, and gradients added up."""


@dataclass(frozen=True)
class Shape:
    """The net and the mini-batch of one rank.

    Attributes:
        hidden: neurons of each hidden layer, at least one.
        rows: of a rank's mini-batch, at least 2.
    """

    hidden: tuple[int, ...]
    rows: int

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients: weights, batch norm's weight and bias, and the output's bias, float32."""
        sizes = [FEATURES, *self.hidden, CLASSES]
        return 4 * (sum(a * b for a, b in pairwise(sizes)) + 2 * sum(self.hidden) + CLASSES)


@dataclass(frozen=True)
class Times:
    """One step of one rank, seconds.

    Attributes:
        step: the whole.
        idle: inside of meetings, the sum of gradients too.
        pieces: compute: the update; each layer forward, the output with the loss the last; each layer backward, the
            output the first. Only of steps with meetings in their batch norms (``alone`` and ``all``).
    """

    step: float
    idle: float
    pieces: tuple[float, ...]


class Trial:
    """A rank's net and data; the same on all ranks but for the data."""

    def __init__(self, shape: Shape, sharing: Clocked) -> None:
        torch.manual_seed(0)
        sizes = [FEATURES, *shape.hidden]
        self.norms = [BatchNorm1d(size, activation="relu", process_group=sharing) for size in shape.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs, norm in zip(sizes, sizes[1:], self.norms, strict=False):
            layers += [nn.Linear(inputs, outputs, bias=False), norm]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))
        self.sharing = sharing
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)
        random = torch.Generator().manual_seed(1 + sharing.rank)
        self.x = torch.randn(shape.rows, FEATURES, generator=random)
        self.y = torch.randint(CLASSES, (shape.rows,), generator=random)
        self.gradients = torch.zeros(sum(parameter.numel() for parameter in self.net.parameters()))
        start = 0
        for parameter in self.net.parameters():  # each gradient is a part of one vector, which is summed in one go
            end = start + parameter.numel()
            parameter.grad = self.gradients[start:end].view_as(parameter)
            start = end

    def run(self, mode: Mode, steps: int) -> list[Times]:
        """``steps`` steps, and one before them that is not counted."""
        for norm in self.norms:
            norm.process_group = None if mode == "none" else self.sharing
        self.sharing.alone = mode == "alone"
        start = perf_counter()
        found = []
        for _ in range(steps + 1):
            times, start = self._step(mode, start)
            found.append(times)
        return found[1:]

    def _step(self, mode: Mode, start: float) -> tuple[Times, float]:
        """The times of a step that began at ``start``, and when it ended."""
        marks = self.sharing.marks
        marks.clear()
        self.gradients /= self.sharing.ranks
        self.optimizer.step()
        self.gradients.zero_()
        updated = perf_counter()
        loss = nn.functional.cross_entropy(self.net(self.x), self.y)
        turned = perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        came = perf_counter()
        if mode != "alone":
            dist.all_reduce(self.gradients)
        end = perf_counter()
        idle = sum(marks[1::2]) - sum(marks[::2]) + end - came
        return Times(end - start, idle, _between([start, start, updated, updated, *marks, came, came], turned)), end


def _between(marks: Sequence[float], turned: float) -> tuple[float, ...]:
    """Compute between meetings: from each mark at an odd place to the next; ``turned`` divides the one it is in."""
    pieces = []
    for left, came in zip(marks[1::2], marks[2::2], strict=False):
        pieces += [turned - left, came - turned] if left <= turned < came else [came - left]
    return tuple(pieces)
