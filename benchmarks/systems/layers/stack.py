"""Layers side by side, passed as a net of them passes: all forward, then all backward, the last first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.layer_cases import Case

# ``forward(i, z, residual)``: the output of layer i.
Forward = Callable[[int, Tensor, Tensor | None], Tensor]


class Stack:
    """``case.layers`` layers that know nothing of each other, with inputs of their own.

    A step keeps what a net keeps, and as long: the inputs z and the outputs' gradients dy (and residuals) lie ready, as
    the neighbours in a net would have left them; the outputs y are new, and each is kept until its own layer's backward
    pass is over, for the next layer of a net needs it in its own; dz and the parameters' gradients are new, and are
    dropped before the next backward pass, as the layer below would have used them up.
    So by the time that a backward pass reads z, the other layers have passed through the caches.

    Args:
        forward: one layer's forward pass in training mode.
        parameters: of each layer, weight and bias.
    """

    def __init__(self, case: Case, forward: Forward, parameters: Sequence[Sequence[Tensor]]) -> None:
        self.note, self.forward = "", forward
        self.inputs, self.gradients = case.make_tensors(0), case.make_tensors(1)
        residuals = case.make_tensors(2) if case.adds else []
        self.residuals: list[Tensor | None] = [*residuals] or [None] * case.layers
        wanted = zip(self.inputs, residuals, strict=True) if residuals else zip(self.inputs, strict=True)
        self.wanted = [[*tensors, *more] for tensors, more in zip(wanted, parameters, strict=True)]
        for tensors in self.wanted:
            for tensor in tensors:
                tensor.requires_grad_()

    def run(self, steps: int) -> float:
        """``steps`` passes of the whole stack; returns the seconds."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return time.perf_counter() - start

    def step(self) -> None:
        """Forward and backward through all layers."""
        forward = self.forward
        outputs = [forward(i, z, r) for i, (z, r) in enumerate(zip(self.inputs, self.residuals, strict=True))]
        for wanted, dy in zip(reversed(self.wanted), reversed(self.gradients), strict=True):
            torch.autograd.grad(outputs[-1], wanted, dy)
            outputs.pop()
