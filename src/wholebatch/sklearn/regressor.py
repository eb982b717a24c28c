"""``MLPRegressor``: scikit-learn's, with batch norm."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.utils._param_validation import Interval, Real, StrOptions

from wholebatch.feedforward.settings import Loss
from wholebatch.feedforward.spread import Spread
from wholebatch.sklearn.parameters import CONSTRAINTS
from wholebatch.sklearn.perceptron import Perceptron


class MLPRegressor(Perceptron, neural_network.MLPRegressor):
    """``sklearn.neural_network.MLPRegressor`` with batch norm, or another norm, on this library's engine.

    Parameters, attributes, methods and messages are scikit-learn's; what follows is what it does not have. A step
    minimises half the squared error (or the Huber loss) *summed* over the outputs; the loss that is reported is
    averaged over them, as scikit-learn reports it. ``activation`` also takes ``"leaky_relu"``, ``"elu"``, ``"gelu"``,
    ``"silu"`` and ``"sigmoid"`` (``"logistic"``), ``solver`` also ``"adamw"``.

    Args:
        loss: ``"squared_error"`` or ``"huber"``. ``"poisson"`` is scikit-learn's alone.
        norm: ``"batch"``, ``"layer"``, ``"rms"``, or None for none (then it is scikit-learn's net).
        norm_position: ``"before"`` the activation, as the batch-norm paper has it, or ``"after"`` it.
        norm_momentum: of the running statistics, ``running = (1 - momentum) * running + momentum * batch``; None
            averages over all mini-batches.
        norm_eps: added to the variance under the root.
        dropout: the share of each hidden layer's outputs that is dropped in training, in ``[0, 1)``; not with lbfgs.
        weight_decay: of ``solver="adamw"`` alone, and decoupled, as in torch; ``alpha`` works beside it.
        max_grad_norm: clips the gradient's 2-norm over all parameters before a step (stochastic solvers), or None.
        huber_delta: where the Huber loss turns from squared to linear.
        n_threads: threads of the engine; None chooses by shape and cores. The result does not depend on it.
        split: who holds what in a mini-batch: ``"example"``, ``"neuron"`` or ``"auto"``. Nor does it depend on this.
        engine: ``"native"``, ``"reference"`` (torch), or ``"auto"``: native where it was built. ``"device"`` is what a
            GPU gets.
        spread: a :class:`wholebatch.Spread`: ``fit`` and ``partial_fit`` are called by every rank of the default
            process group, each with rows of its own, and learn from all of them: every rank ends with the same net,
            and the same ``classes_``. Without a process group this process holds all shards. Predictions are of the
            rows that are given, by this process alone. None: learn from the rows that are given.
        matmul_precision: of the products of training, by the names of ``torch.set_float32_matmul_precision``:
            ``"highest"`` float32; ``"high"`` each number as the sum of two of bfloat16; ``"medium"`` of bfloat16. All
            else, and predictions, stay as they are. The lower two need X in float32, and no lbfgs.
        device: where fits and predictions are computed: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. The fitted arrays lie in
            the host's memory whatever it is, so that a saved estimator loads where there is no GPU; to predict there,
            ``set_params(device="cpu")``.

    Attributes:
        norm_weights_, norm_biases_: gamma and beta of each hidden layer (without a norm none, under ``"rms"`` no beta).
        running_means_, running_vars_: batch norm's running statistics of each hidden layer.

    All else is scikit-learn's (``coefs_``, ``intercepts_``, ``loss_curve_``, ...). ``intercepts_`` of hidden layers are
    zeros where batch norm stands right after the sum: it has beta in their place. With h the activation, hidden layer
    i under batch norm is::

        h(norm_weights_[i] * (X @ coefs_[i] - running_means_[i]) / sqrt(running_vars_[i] + norm_eps) + norm_biases_[i])

    Raises:
        InvalidParameterError: (a ValueError) at ``fit``, for a parameter outside its range.
        ValueError: ``loss="poisson"``; under batch norm, a table or mini-batch of one row; dropout with lbfgs;
            products that are rounded, with lbfgs or X in float64; a loss that is not finite.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **CONSTRAINTS,
        "loss": [StrOptions({"squared_error", "huber", "poisson"})],
        "huber_delta": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        norm: str | None = "batch",
        norm_position: str = "before",
        norm_momentum: float | None = 0.1,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = None,
        huber_delta: float = 1.0,
        n_threads: int | None = None,
        split: str = "auto",
        engine: str = "auto",
        spread: Spread | None = None,
        matmul_precision: str = "highest",
        device: str = "cpu",
    ) -> None:
        super().__init__(
            loss=loss,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        self.norm = norm
        self.norm_position = norm_position
        self.norm_momentum = norm_momentum
        self.norm_eps = norm_eps
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.huber_delta = huber_delta
        self.n_threads = n_threads
        self.split = split
        self.engine = engine
        self.spread = spread
        self.matmul_precision = matmul_precision
        self.device = device

    def _objective(self) -> Loss:
        outputs, alpha = float(self.n_outputs_), float(self.alpha)
        if self.loss == "poisson":
            raise ValueError(
                "loss='poisson' is not in this engine, which has 'squared_error' and 'huber'; "
                "sklearn.neural_network.MLPRegressor has it (without batch norm)"
            )
        if self.loss == "huber":
            return Loss("huber", delta=float(self.huber_delta), scale=outputs, alpha=alpha, weigh_moments=True)
        return Loss("mse", scale=0.5 * outputs, alpha=alpha, weigh_moments=True)

    def _targets(self, y: np.ndarray, dtype: Any) -> np.ndarray:
        return y.astype(dtype, copy=False)

    def _reported(self, loss: float, penalty: float) -> float:
        return float((loss - penalty) / self.n_outputs_ + penalty)
