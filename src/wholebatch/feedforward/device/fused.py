"""A net of fused blocks as one stage: of each hidden layer only its sums are ever in memory.

forward    Z1 = X W1^T + moments      Z2 = phi(bn(Z1)) W2^T + moments      ...      out = phi(bn(Zk)) W^T + b
backward   gk = dout W through phi, + its two sums      dW = dout^T phi(bn(Zk))      ...      dW1 = dZ1^T X
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wholebatch.feedforward.device.course import Batch
from wholebatch.feedforward.device.parameters import Parameters
from wholebatch.feedforward.device.stages import Later
from wholebatch.feedforward.module import FeedForward
from wholebatch.moments import refuse_one_value


class Chain:
    """All layers of a net that :func:`wholebatch.feedforward.device.plan.plan_pass` finds fit for it.

    Args:
        slope: of the activation below 0.
        centre: what was taken from the columns of the table, or None.
    """

    def __init__(self, model: FeedForward, parameters: Parameters, slope: float, centre: Tensor | None) -> None:
        from wholebatch.kernels.gpu import blocks  # imports Triton, which takes a while

        self._blocks, self._parameters, self._slope, self._centre = blocks, parameters, slope, centre
        *self._hidden, self._last = model.parts()
        self._inputs: list[Any] = []

    def forward(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        (inputs,) = values
        if inputs.shape[0] == 1:
            refuse_one_value(inputs.shape)
        known, running = self._parameters.values, self._parameters.running
        self._inputs = [inputs]
        for number, part in enumerate(self._hidden):
            norm: Any = part.norm
            name = part.norm_name
            w, mean = known[f"{part.linear_name}.weight"], running[f"{name}.running_mean"]
            z, statistics = self._blocks.multiply_for_norm(
                self._inputs[-1], w, norm.eps, mean, running[f"{name}.running_var"], norm.momentum
            )
            running[f"{name}.num_batches_tracked"].add_(1)
            if number == 0 and self._centre is not None:
                mean.add_(w @ self._centre, alpha=norm.momentum)
            affine = known[f"{name}.weight"], known[f"{name}.bias"]
            self._inputs.append(self._blocks.Normalised(z, statistics, *affine, self._slope))
        name = self._last.linear_name
        return [self._blocks.multiply(self._inputs[-1], known[f"{name}.weight"], known[f"{name}.bias"])]

    def backward(self, gradients: list[Tensor], later: Later) -> list[Tensor]:
        (gradient,), known, found = gradients, self._parameters.values, self._parameters.of_shard[0]
        torch.sum(gradient, 0, out=found[f"{self._last.linear_name}.bias"])
        above: Any = gradient.contiguous()
        for part, below in zip([self._last, *reversed(self._hidden)], reversed(self._hidden), strict=False):
            inputs = self._inputs.pop()
            name, norm = f"{part.linear_name}.weight", below.norm_name
            self._blocks.multiply_across(above, inputs, found[name])
            sums = found[f"{norm}.weight"], found[f"{norm}.bias"]
            above = self._blocks.multiply_back(above, known[name], inputs, *sums)
        self._blocks.multiply_across(above, self._inputs.pop(), found[f"{self._hidden[0].linear_name}.weight"])
        return []
