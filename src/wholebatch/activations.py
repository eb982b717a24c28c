"""The activations that a batch norm can take in, by name or as a function, and which of them its kernels fuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = str | Callable[[Tensor], Tensor] | None

# The negative slope with which a kernel does it: y = t if t > 0 else slope * t.
_SLOPES: dict[str, float] = {"identity": 1.0, "relu": 0.0, "leaky_relu": 0.01}
# torch's own function runs after the kernel: the numbers of the unfused pair are promised, and an exponential of our
# own would differ from torch's in the last place.
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def resolve_activation(activation: Activation) -> tuple[float, Callable[[Tensor], Tensor] | None]:
    """``(slope, function)``: what the kernel does, and what is to be called after it (None: nothing).

    Args:
        activation: None, a name (``relu``, ``leaky_relu`` with slope 0.01, ``identity``, ``elu``, ``gelu``, ``silu``,
            ``tanh``, ``sigmoid``), or a function or module from tensor to tensor. ReLU and leaky ReLU are fused
            however they are given.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor callable, or a class of modules instead of a module.
    """
    if activation is None:
        return 1.0, None
    if isinstance(activation, str):
        if activation in _SLOPES:
            return _SLOPES[activation], None
        if activation in _FUNCTIONS:
            return 1.0, _FUNCTIONS[activation]
        known = ", ".join(sorted({*_SLOPES, *_FUNCTIONS}))
        raise ValueError(f"activation is {activation!r}; known names are {known}; or pass a function")
    if activation is F.relu or activation is torch.relu or type(activation) is nn.ReLU:
        return 0.0, None
    if type(activation) is nn.LeakyReLU:
        return activation.negative_slope, None
    if isinstance(activation, type):
        raise TypeError(f"activation is the class {activation.__name__}; pass a module: {activation.__name__}()")
    if not callable(activation):
        raise TypeError(f"activation is a {type(activation).__name__}; it must be a name or a function of a tensor")
    return 1.0, activation


def activate(t: Tensor, slope: float) -> Tensor:
    """``t`` where it is above 0, else ``slope * t``: what a kernel does, in torch's operations."""
    return t if slope == 1 else F.relu(t) if slope == 0 else F.leaky_relu(t, slope)
