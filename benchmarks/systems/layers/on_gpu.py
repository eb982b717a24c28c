"""The systems of :mod:`benchmarks.gpu`: stacks of layers on a device, ours and the peers', in this process."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch
from benchmarks.gpu_cases import GpuCase
from benchmarks.systems.layers.stack import Stack

Make = Callable[[GpuCase], Stack]


def ours(case: GpuCase) -> Stack:
    """wholebatch's layers, with the activation and the residual fused."""
    kind = wholebatch.BatchNorm2d if len(case.shape) == 4 else wholebatch.BatchNorm1d
    activation = "relu" if case.rises else None
    layers = [kind(case.shape[1], activation=activation, device=case.device) for _ in range(case.layers)]

    def forward(i: int, z: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = layers[i](z, residual)
        return y

    return Stack(case, forward, [list(layer.parameters()) for layer in layers])


def eager(case: GpuCase) -> Stack:
    """torch's layer, the addition, and the ReLU in place, as ResNet has it."""
    return _stack(case, nn.BatchNorm2d if len(case.shape) == 4 else nn.BatchNorm1d)


def sync(case: GpuCase) -> Stack:
    """The same with torch's SyncBatchNorm."""
    if case.device == "cpu":
        raise ValueError("SyncBatchNorm takes tensors on a GPU only")
    return _stack(case, nn.SyncBatchNorm)


def compiled(case: GpuCase) -> Stack:
    """norm, addition and ReLU in one graph, and their backward pass in another; compiled once for all layers."""
    torch._dynamo.reset()
    stack = eager(case)
    rises, parameters = case.rises, [tensors[-2:] for tensors in stack.wanted]
    zeros, ones = torch.zeros(case.shape[1], device=case.device), torch.ones(case.shape[1], device=case.device)
    running = [(zeros.clone(), ones.clone()) for _ in range(case.layers)]

    @torch.compile(dynamic=False, fullgraph=True)
    def layer(z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, residual: Tensor | None) -> Tensor:
        y = F.batch_norm(z, mean, var, weight, bias, training=True)
        if residual is not None:
            y = y + residual
        return F.relu(y) if rises else y

    def forward(i: int, z: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = layer(z, parameters[i][0], parameters[i][1], *running[i], residual)
        return y

    stack.forward = forward
    return stack


def _stack(case: GpuCase, kind: type[nn.Module]) -> Stack:
    layers = [kind(case.shape[1]).to(case.device) for _ in range(case.layers)]
    rises = case.rises

    def forward(i: int, z: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor = layers[i](z)
        if residual is not None:
            y = y.add_(residual)
        return F.relu(y, inplace=True) if rises else y

    return Stack(case, forward, [list(layer.parameters()) for layer in layers])


SYSTEMS: dict[str, Make] = {"wholebatch": ours, "torch": eager, "sync": sync, "compile": compiled}
PEERS = tuple(name for name in SYSTEMS if name != "wholebatch")
