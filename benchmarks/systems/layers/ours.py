"""wholebatch's layers, with the activation and the residual fused."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import Tensor

import wholebatch
from benchmarks.layer_cases import Case as Problem
from benchmarks.systems import Trainer
from benchmarks.systems.layers.stack import Stack
from wholebatch.kernels import instruction_set


def load() -> str:
    """The version, and the instruction set in use ("none": torch operations, for the compiled part is missing)."""
    return f"{version('wholebatch')} ({instruction_set()})"


def make(case: Problem) -> Trainer:
    """Layers as a net has them."""
    torch.set_num_threads(case.threads)
    kind = wholebatch.BatchNorm2d if len(case.shape) == 4 else wholebatch.BatchNorm1d
    layers = [kind(case.shape[1], activation="relu" if case.rises else None) for _ in range(case.layers)]

    def forward(i: int, z: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = layers[i](z, residual)
        return y

    return Stack(case, forward, [list(layer.parameters()) for layer in layers])
