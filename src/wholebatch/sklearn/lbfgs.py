"""L-BFGS over the net's parameters, by SciPy: the whole table is the one mini-batch of every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.optimize
from sklearn.utils.fixes import _get_additional_lbfgs_options_dict
from torch import Tensor, nn

from wholebatch.feedforward.data import Data
from wholebatch.feedforward.engine import Engine

# Vectors of all parameters that SciPy and this file hold: ten pairs of the past, and what a line search needs.
VECTORS = 25


def minimise(
    engine: Engine,
    data: Data,
    counts: np.ndarray | None = None,
    *,
    max_iter: int,
    max_fun: int,
    tol: float,
    verbose: bool,
) -> Any:
    """Leave the net at the minimum that ``scipy.optimize.minimize`` finds, and return what it returns.

    The net is in float64, as SciPy's vector is: float32 is too coarse for its line search. Over ranks (``counts`` as
    :meth:`Engine.gradients` takes them) every rank gets the same bits, and so takes the same steps.

    Raises:
        NonFiniteLossError: a loss that is not finite.
    """
    parameters = dict(engine.model.named_parameters())

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        _put(point, parameters)
        loss, gradients = engine.gradients(data, counts=counts)
        return loss, _pack(gradients[name] for name in parameters)

    found = scipy.optimize.minimize(
        evaluate,
        _pack(parameters.values()),
        method="L-BFGS-B",
        jac=True,
        options={
            "maxfun": max_fun,
            "maxiter": max_iter,
            "gtol": tol,
            **_get_additional_lbfgs_options_dict("iprint", 1 if verbose else -1),
        },
    )
    _put(found.x, parameters)
    return found


def take_statistics(engine: Engine, data: Data, counts: np.ndarray | None, weight: float) -> None:
    """Make the running statistics those of ``data``, so that the net predicts just what the last evaluation saw.

    Needs a net with momentum 1, which leaves nothing of older statistics. torch keeps the unbiased variance; the step
    itself used the biased one, which is what has to stand here.

    Args:
        weight: by which the unbiased variance is one: how many rows the mini-batch counts.
    """
    engine.gradients(data, update_running_statistics=True, counts=counts)
    for part in engine.model.parts():
        if isinstance(part.norm, nn.BatchNorm1d):
            assert part.norm.running_var is not None
            assert part.norm.momentum == 1.0
            part.norm.running_var.mul_(max(weight - 1, 1.0) / weight)


def _pack(tensors: Any) -> np.ndarray:
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def _put(point: np.ndarray, parameters: Mapping[str, Tensor]) -> None:
    start = 0
    for tensor in parameters.values():
        stop = start + tensor.numel()
        tensor.detach().numpy()[...] = point[start:stop].reshape(tensor.shape)
        start = stop
