"""What a feed-forward net is and how it is trained, as plain values.

Every engine (native, torch reference), every command and every saved file speaks in these values, so they
are checked once, here, where they are made: an impossible value never reaches an engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Norm = Literal["batch", "layer", "rms", "none"]
NormPosition = Literal["before", "after"]
Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "identity"]
LossKind = Literal["cross_entropy", "mse", "huber", "bce"]
OptimizerKind = Literal["sgd", "adam", "adamw"]
Split = Literal["auto", "example", "neuron"]
MatmulPrecision = Literal["highest", "high", "medium"]


def _check_choice(name: str, value: object, choices: object) -> None:
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, known))}")


def _check_at_least(name: str, value: float, least: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= least):
        raise ValueError(f"{name} is {value!r}; it must be a finite number of at least {least}")


def _check_below(name: str, value: float, least: float, bound: float) -> None:
    if not (isinstance(value, (int, float)) and least <= value < bound):
        raise ValueError(f"{name} is {value!r}; it must be at least {least} and below {bound}")


def _check_size(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")


def check_precision(matmul_precision: str, dtype: torch.dtype) -> None:
    """Refuse a precision that products cannot have; the names are those of ``torch.set_float32_matmul_precision``.

    ``"highest"``: products of float32 numbers; ``"high"``: of sums of two bfloat16 numbers; ``"medium"``: of bfloat16
    numbers; all are summed in float32. :mod:`wholebatch.feedforward.products` has the formulas.

    Args:
        dtype: the net's.

    Raises:
        ValueError: an unknown name, or anything but ``"highest"`` for a net that is not in float32.
    """
    _check_choice("matmul_precision", matmul_precision, MatmulPrecision)
    if matmul_precision != "highest" and dtype != torch.float32:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"matmul_precision is {matmul_precision!r}, which rounds the products of a float32 net, and the net is in "
            f"{kind}: use net.float(), or matmul_precision='highest'"
        )


@dataclass(frozen=True)
class Architecture:
    """The net: hidden layers of Linear, norm and activation, then a plain Linear output layer.

    ``norm_position="before"``: ``H = dropout(phi(norm(W X)))``; ``"after"``: ``H = dropout(norm(phi(W X + b)))``.
    A hidden layer has no bias where batch norm stands right after the sum (Ioffe and Szegedy 2015, section 3.2:
    the mean takes it away again, and beta takes its place); it has one everywhere else.

    ``momentum`` is torch's: ``running = (1 - momentum) * running + momentum * batch``; ``None`` averages over all
    steps. ``leaky_relu`` has slope 0.01, ``elu`` alpha 1, ``gelu`` is the exact one: torch's defaults.
    """

    in_features: int
    hidden_layer_sizes: tuple[int, ...]
    out_features: int
    norm: Norm = "batch"
    norm_position: NormPosition = "before"
    activation: Activation = "relu"
    dropout: float = 0.0
    eps: float = 1e-5
    momentum: float | None = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_layer_sizes", tuple(self.hidden_layer_sizes))
        _check_size("in_features", self.in_features)
        for i, size in enumerate(self.hidden_layer_sizes):
            _check_size(f"hidden_layer_sizes[{i}]", size)
        _check_size("out_features", self.out_features)
        _check_choice("norm", self.norm, Norm)
        _check_choice("norm_position", self.norm_position, NormPosition)
        _check_choice("activation", self.activation, Activation)
        _check_below("dropout", self.dropout, 0.0, 1.0)
        if not 0.0 < self.eps < math.inf:  # torch's batch norm wants it so; without it a constant column gives 0/0
            raise ValueError(f"eps is {self.eps!r}; it must be a finite number above 0")
        if self.momentum is not None and not 0.0 <= self.momentum <= 1.0:
            raise ValueError(f"momentum is {self.momentum!r}; it must lie in 0..1, or be None for a plain average")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of the input, of each hidden layer and of the output."""
        return (self.in_features, *self.hidden_layer_sizes, self.out_features)

    @property
    def hidden_bias(self) -> bool:
        """Whether the hidden linear layers have a bias: not where batch norm stands right after the sum."""
        return not (self.norm == "batch" and self.norm_position == "before")

    @property
    def waits(self) -> bool:
        """Whether examples wait for one another: only under batch norm, and only where there is a hidden layer."""
        return self.norm == "batch" and len(self.hidden_layer_sizes) > 0


@dataclass(frozen=True)
class Loss:
    """What a step minimises: ``scale * sum_i w_i l_i / sum_i w_i + alpha/2 * ||weights||^2 / m``.

    ``l_i`` is the loss of example i, *averaged* over its outputs for mse, huber and bce (torch's ``mean``); ``w_i`` is
    the sample weight, times the class weight of the true class under cross-entropy (torch's ``weight=``). Under
    bce the class weights multiply the outputs. ``alpha`` is scikit-learn's L2 penalty on the weight matrices (not on
    biases or on the norms' parameters), with m the sum of the mini-batch's sample weights (without any: its number of
    examples); a mini-batch whose weights are all zero has no penalty either.

    ``weigh_moments``: sample weights weigh batch norm's moments too, so that an example of weight 2 is the same as this
    example twice, in the statistics as in the loss (scikit-learn's rule for weights). Without it each example counts
    once in the statistics, as in torch.

    Targets: class indices ``(N,)`` int64 for cross_entropy, ``(N, out_features)`` numbers for the others.
    """

    kind: LossKind
    label_smoothing: float = 0.0
    delta: float = 1.0
    class_weights: tuple[float, ...] | None = None
    scale: float = 1.0
    alpha: float = 0.0
    weigh_moments: bool = False

    def __post_init__(self) -> None:
        _check_choice("loss", self.kind, LossKind)
        _check_below("label_smoothing", self.label_smoothing, 0.0, 1.0)
        if not self.delta > 0:
            raise ValueError(f"delta (the Huber loss's) is {self.delta!r}; it must be above 0")
        _check_at_least("scale", self.scale, 0.0)
        _check_at_least("alpha", self.alpha, 0.0)
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))
            for i, weight in enumerate(self.class_weights):
                _check_at_least(f"class_weights[{i}]", weight, 0.0)

    @property
    def takes_classes(self) -> bool:
        """Whether targets are class indices rather than a row of numbers per example."""
        return self.kind == "cross_entropy"


@dataclass(frozen=True)
class Optimizer:
    """torch's SGD, Adam and AdamW, with torch's formulas; ``weight_decay`` reaches every parameter, as there.

    ``eps_hat`` adds Adam's ``eps`` before the bias correction instead of after it, to the uncorrected root of the
    second moment: the epsilon-hat of Kingma and Ba's more efficient form (section 2), which scikit-learn and TensorFlow
    have.

    ``max_grad_norm`` clips the gradient's global 2-norm (``torch.nn.utils.clip_grad_norm_``) before the update.
    """

    kind: OptimizerKind = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    eps_hat: bool = False
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.kind, OptimizerKind)
        _check_at_least("learning_rate", self.learning_rate, 0.0)
        if not 0.0 <= self.momentum <= 1.0:
            raise ValueError(f"momentum (the optimizer's) is {self.momentum!r}; it must lie in 0..1")
        object.__setattr__(self, "betas", tuple(self.betas))
        for i, beta in enumerate(self.betas):
            _check_below(f"betas[{i}]", beta, 0.0, 1.0)
        _check_at_least("eps (the optimizer's)", self.eps, 0.0)
        _check_at_least("weight_decay", self.weight_decay, 0.0)
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov=True needs a momentum above 0; the optimizer's momentum is 0")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm!r}; it must be above 0, or None for no clipping")

    @property
    def state_names(self) -> tuple[str, ...]:
        """What the optimizer keeps for each parameter, by torch's names."""
        if self.kind == "sgd":
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg", "exp_avg_sq")
