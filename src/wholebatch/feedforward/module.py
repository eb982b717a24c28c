"""``FeedForward``: the batch-normalised feed-forward net as an ordinary ``torch.nn.Module``.

The parameters are ordinary torch tensors in ordinary torch layers, so the net works in any PyTorch loop, saves with
``state_dict`` and exports to ONNX. ``fit`` trains it with an engine that works on the same tensors, in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wholebatch.devices import check_device
from wholebatch.feedforward.footprint import check_net
from wholebatch.feedforward.settings import Architecture

if TYPE_CHECKING:
    from wholebatch.feedforward.training import History

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def make_norm(architecture: Architecture, features: int, **factory: Any) -> nn.Module | None:
    """The norm of one hidden layer as torch's own module, or None."""
    if architecture.norm == "batch":
        return nn.BatchNorm1d(features, eps=architecture.eps, momentum=architecture.momentum, **factory)
    if architecture.norm == "layer":
        return nn.LayerNorm(features, eps=architecture.eps, **factory)
    if architecture.norm == "rms":
        return nn.RMSNorm(features, eps=architecture.eps, **factory)
    return None


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The net in training or eval mode for a while; each of its modules gets its own flag back."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


@dataclass(frozen=True)
class Layer:
    """One layer's modules, by their role, and the names of its modules in the net."""

    linear: nn.Linear
    linear_name: str
    norm: nn.Module | None = None
    norm_name: str = ""

    def parameters(self) -> Iterator[tuple[str, str, Tensor]]:
        """(role, name in the net, tensor) of each parameter; roles: weight, bias, norm_weight, norm_bias."""
        # By name: engines ask at every epoch, and torch's own walk over a module takes ten times as long.
        for module, prefix, role in ((self.linear, self.linear_name, ""), (self.norm, self.norm_name, "norm_")):
            for name in ("weight", "bias"):
                tensor = getattr(module, name, None)
                if tensor is not None:
                    yield f"{role}{name}", f"{prefix}.{name}", tensor


class FeedForward(nn.Module):
    """A feed-forward net of hidden layers with norm, activation and dropout, and a linear output layer.

    With ``norm="batch"`` and ``norm_position="before"``, for hidden layer l over a mini-batch of m examples::

        Z = H W^T               (no bias: beta takes its place)
        mu = sum_p Z_p / m      var = sum_p (Z_p - mu)^2 / m
        H' = dropout(phi(gamma * (Z - mu) / sqrt(var + eps) + beta))

    Args:
        in_features: F, the columns of the input ``(N, F)``.
        hidden_layer_sizes: neurons of each hidden layer; may be empty (a linear model).
        out_features: classes, values or labels: the columns of the output ``(N, out_features)``. The output is
            linear (logits, or values): the softmax or sigmoid belongs to the loss, as in torch.
        norm, norm_position, activation, dropout, eps, momentum: see :class:`Architecture`.
        device, dtype: as for every torch module.

    Raises:
        ValueError: a size below 1, an unknown name, a dropout outside ``[0, 1)``, parameters that do not fit in memory.

    Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015.
    """

    def __init__(
        self,
        in_features: int,
        hidden_layer_sizes: tuple[int, ...],
        out_features: int,
        *,
        norm: str = "batch",
        norm_position: str = "before",
        activation: str = "relu",
        dropout: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_device(device)
        super().__init__()
        self.architecture = Architecture(
            in_features,
            hidden_layer_sizes,
            out_features,
            norm,  # type: ignore[arg-type]  # Architecture checks the names
            norm_position,  # type: ignore[arg-type]
            activation,  # type: ignore[arg-type]
            dropout,
            eps,
            momentum,
        )
        a = self.architecture
        if torch.device(device or torch.get_default_device()).type == "cpu":
            check_net(a, dtype or torch.get_default_dtype())
        modules: list[nn.Module] = []
        for fan_in, fan_out in pairwise(a.sizes[:-1]):
            modules.append(nn.Linear(fan_in, fan_out, bias=a.hidden_bias, device=device, dtype=dtype))
            norm_module = make_norm(a, fan_out, device=device, dtype=dtype)
            activation_module = ACTIVATIONS[a.activation]()
            if norm_module is None:
                modules.append(activation_module)
            elif a.norm_position == "before":
                modules += [norm_module, activation_module]
            else:
                modules += [activation_module, norm_module]
            if a.dropout:
                modules.append(nn.Dropout(a.dropout))
        modules.append(nn.Linear(a.sizes[-2], a.sizes[-1], device=device, dtype=dtype))
        self.layers = nn.Sequential(*modules)

    @classmethod
    def of(cls, architecture: Architecture, **factory: Any) -> FeedForward:
        """The net that an :class:`Architecture` describes."""
        return cls(**vars(architecture), **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_features)`` to ``(N, out_features)``: logits, or values."""
        out: Tensor = self.layers(x)
        return out

    def parts(self) -> list[Layer]:
        """The layers by role, hidden ones first, the output layer last."""
        norms = (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm)
        found: list[Layer] = []
        for index, module in enumerate(self.layers):
            name = f"layers.{index}"
            if isinstance(module, nn.Linear):
                found.append(Layer(module, name))
            elif isinstance(module, norms):
                found[-1] = Layer(found[-1].linear, found[-1].linear_name, module, name)
        return found

    def fit(self, x: Any, y: Any, **settings: Any) -> History:
        """Train in place on a table held in memory; see :func:`wholebatch.feedforward.training.fit`."""
        from wholebatch.feedforward.training import fit

        return fit(self, x, y, **settings)

    def to_sequential(self) -> nn.Sequential:
        """A plain ``nn.Sequential`` with equal outputs; see :func:`wholebatch.feedforward.sequential.to_sequential`."""
        from wholebatch.feedforward.sequential import to_sequential

        return to_sequential(self)

    @classmethod
    def from_sequential(cls, sequential: nn.Sequential) -> FeedForward:
        """A net with equal outputs; see :func:`wholebatch.feedforward.sequential.from_sequential`."""
        from wholebatch.feedforward.sequential import from_sequential

        return from_sequential(sequential)

    def to_onnx(self, path: str | PathLike[str]) -> None:
        """Write the net as an ONNX file; see :func:`wholebatch.feedforward.onnx.to_onnx`."""
        from wholebatch.feedforward.onnx import to_onnx

        to_onnx(self, path)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.architecture).items())
