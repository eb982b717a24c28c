"""``MLPClassifier``: scikit-learn's, with batch norm."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import Interval, Real, StrOptions
from sklearn.utils.multiclass import unique_labels

from wholebatch.feedforward.agreement import do_together
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.settings import Loss
from wholebatch.feedforward.spread import Spread
from wholebatch.sklearn.parameters import CONSTRAINTS
from wholebatch.sklearn.perceptron import Perceptron
from wholebatch.sklearn.spreading import balance, union_labels


class MLPClassifier(Perceptron, neural_network.MLPClassifier):
    """``sklearn.neural_network.MLPClassifier`` with batch norm, or another norm, on this library's engine.

    Parameters, attributes, methods and messages are scikit-learn's; what follows is what it does not have. Two classes
    and several labels train on binary cross-entropy, several classes on cross-entropy. ``activation`` also takes
    ``"leaky_relu"``, ``"elu"``, ``"gelu"``, ``"silu"`` and ``"sigmoid"`` (``"logistic"``), ``solver`` also ``"adamw"``.

    Args:
        norm: ``"batch"``, ``"layer"``, ``"rms"``, or None for none (then it is scikit-learn's net).
        norm_position: ``"before"`` the activation, as the batch-norm paper has it, or ``"after"`` it.
        norm_momentum: of the running statistics, ``running = (1 - momentum) * running + momentum * batch``; None
            averages over all mini-batches.
        norm_eps: added to the variance under the root.
        dropout: the share of each hidden layer's outputs that is dropped in training, in ``[0, 1)``; not with lbfgs.
        weight_decay: of ``solver="adamw"`` alone, and decoupled, as in torch; ``alpha`` works beside it.
        max_grad_norm: clips the gradient's 2-norm over all parameters before a step (stochastic solvers), or None.
        class_weight: ``{class: weight}``, ``"balanced"`` (``n_samples / (n_classes * count of the class)``), or a list
            of dicts for several labels; multiplies ``sample_weight``.
        label_smoothing: in ``[0, 1)``: each target is moved by this share towards all classes alike.
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
        ValueError: under batch norm, a table or mini-batch of one row; dropout with lbfgs; products that are
            rounded, with lbfgs or X in float64; a loss that is not finite.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **CONSTRAINTS,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
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
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        n_threads: int | None = None,
        split: str = "auto",
        engine: str = "auto",
        spread: Spread | None = None,
        matmul_precision: str = "highest",
        device: str = "cpu",
    ) -> None:
        super().__init__(
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
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.n_threads = n_threads
        self.split = split
        self.engine = engine
        self.spread = spread
        self.matmul_precision = matmul_precision
        self.device = device

    def _objective(self) -> Loss:
        smoothing, alpha = float(self.label_smoothing), float(self.alpha)
        if self.out_activation_ == "softmax":
            return Loss("cross_entropy", label_smoothing=smoothing, alpha=alpha, weigh_moments=True)
        # scikit-learn sums over the labels where the engine averages
        return Loss("bce", label_smoothing=smoothing, alpha=alpha, scale=float(self.n_outputs_), weigh_moments=True)

    def _targets(self, y: np.ndarray, dtype: Any) -> np.ndarray:
        return y.argmax(1) if self.out_activation_ == "softmax" else y.astype(dtype)

    def _encode(self, y: np.ndarray, peers: Peers, *, incremental: bool) -> np.ndarray:
        # By scikit-learn's rules for one table, with the labels of all ranks: one of them may not have every class.
        labels = union_labels(peers, unique_labels(y))
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            self._label_binarizer = LabelBinarizer().fit(y if y.ndim == 2 else labels)
            self.classes_ = self._label_binarizer.classes_
        elif self.warm_start and set(labels) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {labels}"
            )
        elif not self.warm_start and len(np.setdiff1d(labels, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {labels}."
            )
        encoded: np.ndarray = self._label_binarizer.transform(y).astype(bool)
        return encoded

    def _weights(
        self, y: np.ndarray, sample_weight: np.ndarray | None, peers: Peers | None, *, incremental: bool
    ) -> np.ndarray | None:
        if self.class_weight is None:
            return sample_weight
        balanced = self.class_weight == "balanced"
        if incremental and balanced:
            raise ValueError(
                "class_weight='balanced' needs all of y at once, which partial_fit does not have; give the weights as "
                "a dict: sklearn.utils.compute_class_weight('balanced', classes=..., y=...) computes them"
            )
        labels = self._label_binarizer.inverse_transform(y)
        chosen = balance(peers, labels, self.classes_) if balanced and peers is not None else self.class_weight
        weight = do_together(peers, lambda: compute_sample_weight(chosen, labels))
        return np.asarray(weight if sample_weight is None else weight * sample_weight)
