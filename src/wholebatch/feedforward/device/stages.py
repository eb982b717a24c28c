"""What a mini-batch goes through on its way through the net, there and back, on any device.

Each stage takes the values of the own shards and gives theirs, and takes the gradients back. Nothing here reads a
number from the device. What waits for nobody, the gradients of weights, is put off until somebody waits: ``later``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from wholebatch.feedforward.device.course import Batch
from wholebatch.feedforward.device.dropout import keep_mask
from wholebatch.feedforward.device.parameters import Parameters
from wholebatch.feedforward.products import apply_linear, multiply
from wholebatch.feedforward.settings import MatmulPrecision
from wholebatch.kernels import gpu

Later = list[Callable[[], None]]


class Stage(Protocol):
    """One step of the way."""

    def forward(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        """Values of each own shard, from those before."""

    def backward(self, gradients: list[Tensor], later: Later) -> list[Tensor]:
        """Gradients of each own shard, from those behind; what may wait is appended to ``later``."""


class Linear:
    """``x W^T + b``.

    Args:
        precision: of its three products.
        first: nobody asks for the gradient of its input.
    """

    def __init__(self, parameters: Parameters, name: str, precision: MatmulPrecision, *, first: bool) -> None:
        self._parameters, self._precision, self._first = parameters, precision, first
        self._weight, self._bias = f"{name}.weight", f"{name}.bias"
        self._inputs: list[Tensor] = []

    def forward(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        self._inputs = values
        known = self._parameters.values
        return [apply_linear(x, known[self._weight], known.get(self._bias), self._precision) for x in values]

    def backward(self, gradients: list[Tensor], later: Later) -> list[Tensor]:
        inputs, self._inputs = self._inputs, []

        def find_own() -> None:
            for x, g, of in zip(inputs, gradients, self._parameters.of_shard, strict=True):
                if self._precision == "highest":
                    torch.mm(g.t(), x, out=of[self._weight])
                else:
                    of[self._weight].copy_(multiply(g.t(), x, self._precision))
                if self._bias in of:
                    torch.sum(g, 0, out=of[self._bias])

        later.append(find_own)
        return (
            []
            if self._first
            else [multiply(g, self._parameters.values[self._weight], self._precision) for g in gradients]
        )


class Module:
    """An activation, or a norm of each example by itself: torch's module, differentiated by autograd."""

    def __init__(self, parameters: Parameters, module: nn.Module, name: str) -> None:
        self._parameters, self._module = parameters, module
        self._names = {of: f"{name}.{of}" for of, _ in module.named_parameters()}
        self._inputs: list[Tensor] = []
        self._leaves: list[dict[str, Tensor]] = []
        self._outputs: list[Tensor] = []

    def forward(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        known = self._parameters.values
        with torch.enable_grad():
            self._inputs = [x.detach().requires_grad_() for x in values]
            self._leaves = [{of: known[n].detach().requires_grad_() for of, n in self._names.items()} for _ in values]
            self._outputs = [
                torch.func.functional_call(self._module, leaves, (x,))
                for x, leaves in zip(self._inputs, self._leaves, strict=True)
            ]
        return [x.detach() for x in self._outputs]

    def backward(self, gradients: list[Tensor], later: Later) -> list[Tensor]:
        found = []
        for number, gradient in enumerate(gradients):
            wanted = [self._inputs[number], *self._leaves[number].values()]
            dx, *own = torch.autograd.grad(self._outputs[number], wanted, gradient)
            for name, of in zip(self._names.values(), own, strict=True):
                self._parameters.of_shard[number][name].copy_(of)
            found.append(dx)
        self._inputs, self._leaves, self._outputs = [], [], []
        return found


class Dropout:
    """``x * mask / (1 - p)``; the mask is a function of seed, step, layer and place.

    Where Triton serves, a kernel makes the mask both ways, and none is stored.

    Args:
        layer: the hidden layer, from 0.
    """

    def __init__(self, layer: int, p: float, seed: int) -> None:
        self._layer, self._p, self._seed = layer, p, seed
        self._masks: list[Tensor] = []
        self._batch: Batch | None = None

    def forward(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        if all(gpu.serves(x) for x in values):
            self._batch = batch
            return self._drop(values, batch)
        self._masks = [
            keep_mask(x.shape[0], x.shape[1], self._layer, batch.step, self._seed, self._p, part.first)
            for x, part in zip(values, batch.parts, strict=True)
        ]
        return [x * mask / (1 - self._p) for x, mask in zip(values, self._masks, strict=True)]

    def backward(self, gradients: list[Tensor], later: Later) -> list[Tensor]:
        if self._batch is not None:
            batch, self._batch = self._batch, None
            return self._drop(gradients, batch)
        masks, self._masks = self._masks, []
        return [g * mask / (1 - self._p) for g, mask in zip(gradients, masks, strict=True)]

    def _drop(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        from wholebatch.kernels.gpu.dropping import drop  # imports Triton, which takes a while

        return [
            drop(x, self._layer, batch.step, self._seed, self._p, part.first)
            for x, part in zip(values, batch.parts, strict=True)
        ]
