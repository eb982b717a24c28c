"""The net's parameters and running statistics as the device engine has them: copies of its own, in one tensor.

One tensor for all parameters makes the update, the gradient's norm and the exchange between ranks one operation each,
however many layers there are. The copies are written back at the end of an epoch, so that one that is interrupted
leaves the net as it was.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.feedforward.module import FeedForward

ALIGNED = 64  # elements: every tensor begins at a multiple of 256 bytes or more, as the matrix products like it


class Parameters:
    """Values, and the gradients of each own shard, at addresses that stay.

    Attributes:
        flat: ``(n,)``, the parameters one behind the other, the weight matrices first, with zeros between.
        gradients: ``(shards, n)``, likewise.
        total: ``(n,)``, the gradient of all shards: the first of ``gradients`` where there is one.
        values: views of ``flat`` by name.
        running: copies of the net's buffers by name.
    """

    def __init__(self, model: FeedForward, device: torch.device, shards: int = 1) -> None:
        self._model = model
        weights = [f"{part.linear_name}.weight" for part in model.parts()]
        known = dict(model.named_parameters())
        names = [*weights, *(name for name in known if name not in weights)]
        sizes = [-(-known[name].numel() // ALIGNED) * ALIGNED for name in names]
        ends = list(accumulate(sizes, initial=0))
        dtype = known[names[0]].dtype
        self.flat = torch.zeros(ends[-1], dtype=dtype, device=device)
        self.gradients = torch.zeros((shards, ends[-1]), dtype=dtype, device=device)
        self.total = self.gradients[0] if shards == 1 else torch.zeros_like(self.flat)
        self._places = {name: (begin, known[name].shape) for name, begin in zip(names, ends, strict=False)}
        self.values = self.views(self.flat)
        self.of_shard = [self.views(gradient) for gradient in self.gradients]
        self.running = {name: torch.empty_like(buffer, device=device) for name, buffer in model.named_buffers()}

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """By the parameters' names, what of a tensor like ``flat`` is theirs."""
        return {n: flat[begin : begin + shape.numel()].view(shape) for n, (begin, shape) in self._places.items()}

    @torch.no_grad()
    def load(self) -> None:
        """Take the net's."""
        for name, parameter in self._model.named_parameters():
            self.values[name].copy_(parameter, non_blocking=True)
        for name, buffer in self._model.named_buffers():
            self.running[name].copy_(buffer, non_blocking=True)

    @torch.no_grad()
    def store(self) -> None:
        """Give them to the net."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(self.values[name])
        self.store_running()

    @torch.no_grad()
    def store_running(self) -> None:
        """Give the net its running statistics alone."""
        for name, buffer in self._model.named_buffers():
            buffer.copy_(self.running[name])

    def first_not_finite(self) -> int | None:
        """The first layer, from 1, with a parameter that is not finite; the device is waited for, once."""
        parts = self._model.parts()
        each = [
            torch.stack([torch.isfinite(self.values[name]).all() for _, name, _ in part.parameters()]).all()
            for part in parts
        ]
        good: list[bool] = torch.stack(each).tolist()
        return None if all(good) else good.index(False) + 1

    def call(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """``module``, the net itself or one of its layers, on these copies."""
        out: Tensor = torch.func.functional_call(module, self._state(), inputs)
        return out

    def _state(self) -> dict[str, Any]:
        return {**self.values, **self.running}
