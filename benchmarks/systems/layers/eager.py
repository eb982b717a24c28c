"""torch, eager: torch.nn's batch norm, the addition and the ReLU, in place after it or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.layer_cases import Case as Problem
from benchmarks.systems import Trainer
from benchmarks.systems.choice import fastest
from benchmarks.systems.layers.stack import Stack


def load() -> str:
    """torch's version."""
    return torch.__version__


def make(case: Problem) -> Trainer:
    """The faster of ReLU (and addition) in place and not."""
    torch.set_num_threads(case.threads)
    if not case.rises:
        return stack_of(case, False)
    return fastest({"in place": stack_of(case, True), "out of place": stack_of(case, False)})


def make_layers(case: Problem, kinds: tuple[type[nn.Module], type[nn.Module]]) -> list[nn.Module]:
    """One layer for each of the stack, of the first kind for ``(N, C)`` and of the second for ``(N, C, H, W)``."""
    return [kinds[len(case.shape) == 4](case.shape[1]) for _ in range(case.layers)]


def stack_of(case: Problem, in_place: bool) -> Stack:
    """Modules as a net has them."""
    layers = make_layers(case, (nn.BatchNorm1d, nn.BatchNorm2d))
    rises = case.rises

    def forward(i: int, z: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = layers[i](z)
        if residual is not None:
            y = y.add_(residual) if in_place else y + residual
        return F.relu(y, inplace=in_place) if rises else y

    return Stack(case, forward, [list(layer.parameters()) for layer in layers])
