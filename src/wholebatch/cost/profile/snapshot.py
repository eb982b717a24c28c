"""What a training step changes, kept to be put back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer


class Snapshot:
    """Parameters, buffers, gradients, training flags, optimizers' states and the global random generators.

    Not what a step changes elsewhere: data loaders, learning rate schedules, random generators of its own.
    """

    def __init__(self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        parameters = dict.fromkeys([*(p for model in models for p in model.parameters()), *held])
        buffers = dict.fromkeys(b for model in models for b in model.buffers())
        self._gradients = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in (*parameters, *buffers)]
        self._flags = [(module, module.training) for model in models for module in model.modules()]
        self._states = [(optimizer, _copy(optimizer.state_dict())) for optimizer in optimizers]
        self._random = random.getstate(), torch.get_rng_state()
        self._numpy = np.random.get_state()  # noqa: NPY002
        self._device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for tensor, kept in self._tensors:
                tensor.copy_(kept)
            for parameter, gradient in self._gradients:
                if gradient is None or parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad.copy_(gradient)  # it may be a view of a bucket
        for module, training in self._flags:
            module.training = training
        for optimizer, state in self._states:
            optimizer.load_state_dict(state)
        random.setstate(self._random[0])
        torch.set_rng_state(self._random[1])
        np.random.set_state(self._numpy)  # noqa: NPY002
        if self._device:
            torch.cuda.set_rng_state_all(self._device)


def _copy(value: Any) -> Any:
    """``value`` with its tensors cloned, and containers of them made anew."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value
