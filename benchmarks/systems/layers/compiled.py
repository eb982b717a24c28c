"""torch.compile: norm, addition and ReLU in one graph, and their backward pass in another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.layer_cases import Case as Problem
from benchmarks.systems import Trainer
from benchmarks.systems.compiled import load
from benchmarks.systems.layers.stack import Stack

__all__ = ["Problem", "load", "make"]


def make(case: Problem) -> Trainer:
    """One function for all layers, compiled once for this shape; their state is given to it."""
    torch.set_num_threads(case.threads)
    torch._dynamo.reset()  # so that the layers measured before do not count towards its limit of recompilations
    channels, rises = case.shape[1], case.rises
    parameters = [(torch.ones(channels), torch.zeros(channels)) for _ in range(case.layers)]
    running = [(torch.zeros(channels), torch.ones(channels)) for _ in range(case.layers)]

    @torch.compile(dynamic=False, fullgraph=True)
    def layer(z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, residual: Tensor | None) -> Tensor:
        y = F.batch_norm(z, mean, var, weight, bias, training=True)
        if residual is not None:
            y = y + residual
        return F.relu(y) if rises else y

    def forward(i: int, z: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = layer(z, *parameters[i], *running[i], residual)
        return y

    return Stack(case, forward, parameters)
