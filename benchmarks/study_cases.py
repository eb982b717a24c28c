"""What the study of micro-batches trains: data, nets, and the ways to make an optimizer step of a mini-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import wholebatch
from wholebatch.microbatches.offload import Offload

Net = Literal["conv", "mlp"]
BATCH, BUDGET = 64, 8  # examples of an optimizer step; examples that the memory holds at once
SIZE, NOISE, GROUPS = 10, 0.1, 8
ROWS = {"train": 1000, "validation": 300, "test": 497}


@dataclass(frozen=True)
class Way:
    """How a step of :data:`BATCH` examples is made.

    Attributes:
        name: for tables.
        micro: examples of a micro-batch; :data:`BATCH` is undivided.
        norm: ``batch`` or ``group``.
        exact: whether the micro-batches go in lockstep.
        sorted: whether each step's examples come sorted by class, so that a micro-batch has one or two classes.
    """

    name: str
    micro: int
    norm: Literal["batch", "group"] = "batch"
    exact: bool = False
    sorted: bool = False


WAYS = {
    way.name: way
    for way in (
        Way("undivided", BATCH),
        Way("lockstep", BUDGET, exact=True),
        Way("plain-8", 8),
        Way("plain-4", 4),
        Way("plain-2", 2),
        Way("plain-8-sorted", 8, sorted=True),
        Way("lockstep-sorted", BUDGET, exact=True, sorted=True),
        Way("group", BUDGET, norm="group"),
    )
}


@dataclass(frozen=True)
class Split:
    """Images ``(N, 1, 10, 10)``, float32, and their classes ``(N,)``."""

    x: Tensor
    y: Tensor


@cache
def load_data() -> dict[str, Split]:
    """scikit-learn's 1797 digits made harder, the same in every run: train, validation and test.

    Each 8 x 8 image stands somewhere in a field of 10 x 10, in a contrast between 0.5 and 1, under normal noise of
    standard deviation 0.1 (where ink is 0 to 1).
    """
    x, y = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    order = random.permutation(len(x))
    images = x[order].reshape(-1, 8, 8) / 16
    field = np.zeros((len(x), SIZE, SIZE))
    for image, target, (top, left) in zip(images, field, random.integers(0, SIZE - 7, (len(x), 2)), strict=True):
        target[top : top + 8, left : left + 8] = image
    field = field * random.uniform(0.5, 1, (len(x), 1, 1)) + NOISE * random.standard_normal(field.shape)
    images_made = torch.from_numpy(field[:, None].astype(np.float32))
    classes = torch.from_numpy(y[order].astype(np.int64))
    ends = np.cumsum(list(ROWS.values()))
    return {
        name: Split(images_made[end - count : end], classes[end - count : end])
        for (name, count), end in zip(ROWS.items(), ends, strict=True)
    }


def make_net(net: Net, norm: str, seed: int) -> nn.Sequential:
    """Three convolutions of 16 to 32 channels, or three hidden layers of 128; the same weights for either norm."""
    torch.manual_seed(seed)
    if net == "mlp":
        widths = (SIZE * SIZE, 128, 128, 128)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in pairwise(widths):
            layers += [nn.Linear(before, width, bias=False), *_norm(wholebatch.BatchNorm1d, norm, width)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 10))
    layers = []
    for before, width, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), *_norm(wholebatch.BatchNorm2d, norm, width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _norm(make: Callable[..., nn.Module], norm: str, width: int) -> list[nn.Module]:
    return [make(width, activation="relu")] if norm == "batch" else [nn.GroupNorm(GROUPS, width), nn.ReLU()]


def step_of(way: Way, model: nn.Module, offload: Offload) -> Callable[[Tensor, Tensor], Tensor]:
    """Forward, loss and backward of one optimizer step by this way; returns the mini-batch's loss, detached."""
    if way.exact:
        return partial(_in_lockstep, model, way.micro, offload)
    return partial(_one_by_one, model, way.micro)


def _in_lockstep(model: nn.Module, micro: int, offload: Offload, x: Tensor, y: Tensor) -> Tensor:
    parts = -(-len(x) // micro)
    return wholebatch.accumulate(model, nn.CrossEntropyLoss(), x, y, parts, offload=offload)


def _one_by_one(model: nn.Module, micro: int, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros(())
    for part, target in zip(torch.split(x, micro), torch.split(y, micro), strict=True):
        loss = F.cross_entropy(model(part), target) * (len(part) / len(x))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def order_of(way: Way, rows: int, classes: Tensor, generator: torch.Generator) -> list[Tensor]:
    """An epoch's steps as indices: the same mini-batches for every way with the same generator; rests are left out."""
    steps = torch.split(torch.randperm(rows, generator=generator)[: rows - rows % BATCH], BATCH)
    if not way.sorted:
        return list(steps)
    return [step[classes[step].argsort(stable=True)] for step in steps]
