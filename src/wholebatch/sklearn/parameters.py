"""What the estimators' parameters mean: those that scikit-learn does not have, and all of them in an engine's words."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.utils._param_validation import Interval, StrOptions

from wholebatch.feedforward.engines import ENGINES
from wholebatch.feedforward.settings import Activation, Architecture, MatmulPrecision, NormPosition, Optimizer, Split
from wholebatch.feedforward.spread import Spread

STOCHASTIC_SOLVERS = ("sgd", "adam", "adamw")

# In scikit-learn's own form, so that wrong values are refused at the same moment and in the same words as there.
CONSTRAINTS: dict[str, list[Any]] = {
    "activation": [StrOptions({*get_args(Activation), "logistic"})],
    "solver": [StrOptions({"lbfgs", *STOCHASTIC_SOLVERS})],
    "norm": [StrOptions({"batch", "layer", "rms"}), None],
    "norm_position": [StrOptions(set(get_args(NormPosition)))],
    "norm_momentum": [Interval(Real, 0, 1, closed="both"), None],
    "norm_eps": [Interval(Real, 0, None, closed="left")],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
    "n_threads": [Interval(Integral, 1, None, closed="left"), None],
    "split": [StrOptions(set(get_args(Split)))],
    "engine": [StrOptions(set(ENGINES))],
    "device": [str],
    "matmul_precision": [StrOptions(set(get_args(MatmulPrecision)))],
    "spread": [Spread, None],
}


def hidden_sizes(hidden_layer_sizes: int | Iterable[int]) -> tuple[int, ...]:
    """``hidden_layer_sizes`` as a tuple of plain ints.

    Raises:
        ValueError: a size of 0 or below.
        TypeError: a size that is not whole.
    """
    sizes = list(hidden_layer_sizes) if isinstance(hidden_layer_sizes, Iterable) else [hidden_layer_sizes]
    if np.any(np.array(sizes) <= 0):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return tuple(operator.index(size) for size in sizes)


def batch_rows(batch_size: int | str, rows: int) -> int:
    """The rows of a mini-batch: no more than the table has."""
    return min(200, rows) if isinstance(batch_size, str) else int(np.clip(batch_size, 1, rows))


def architecture(estimator: Any, features: int, hidden: tuple[int, ...], outputs: int) -> Architecture:
    """The net that the estimator's parameters describe, between this input and this output."""
    momentum = estimator.norm_momentum
    return Architecture(
        features,
        hidden,
        outputs,
        norm="none" if estimator.norm is None else estimator.norm,
        norm_position=estimator.norm_position,
        activation="sigmoid" if estimator.activation == "logistic" else estimator.activation,
        dropout=float(estimator.dropout),
        eps=float(estimator.norm_eps),
        momentum=None if momentum is None else float(momentum),
    )


def optimizer(estimator: Any) -> Optimizer:
    """The update rule of a stochastic solver."""
    clip = None if estimator.max_grad_norm is None else float(estimator.max_grad_norm)
    if estimator.solver == "sgd":
        momentum = float(estimator.momentum)
        return Optimizer(
            "sgd",
            float(estimator.learning_rate_init),
            momentum=momentum,
            nesterov=bool(estimator.nesterovs_momentum) and momentum > 0,
            max_grad_norm=clip,
        )
    return Optimizer(
        estimator.solver,
        float(estimator.learning_rate_init),
        betas=(float(estimator.beta_1), float(estimator.beta_2)),
        eps=float(estimator.epsilon),
        eps_hat=True,
        weight_decay=float(estimator.weight_decay) if estimator.solver == "adamw" else 0.0,
        max_grad_norm=clip,
    )


def check_precision(estimator: Any, dtype: Any) -> None:
    """Refuse products that are rounded where the net is in float64.

    Args:
        dtype: of the table to fit, which the net takes on.

    Raises:
        ValueError: naming the parameter, and the remedy.
    """
    if estimator.matmul_precision == "highest":
        return
    asked = f"matmul_precision={estimator.matmul_precision!r}"
    if estimator.solver == "lbfgs":
        raise ValueError(
            f"{asked} with solver='lbfgs': L-BFGS works in float64, whose products are not rounded; "
            "use solver='adam', 'adamw' or 'sgd', or matmul_precision='highest'"
        )
    if dtype != np.float32:
        raise ValueError(
            f"{asked} rounds the products of a float32 net, and X in {np.dtype(dtype).name} makes it a "
            f"{np.dtype(dtype).name} one: fit X.astype(np.float32), or use matmul_precision='highest'"
        )


def schedule(estimator: Any) -> Any:
    """scikit-learn's own optimizer object, without parameters: it keeps the learning rate and says when it stops."""
    if estimator.solver == "sgd":
        return SGDOptimizer([], estimator.learning_rate_init, estimator.learning_rate, power_t=estimator.power_t)
    return AdamOptimizer([], estimator.learning_rate_init)
