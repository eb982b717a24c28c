"""What both estimators share: scikit-learn's life cycle (validation, attributes, messages), this library's net beneath.

The classes of scikit-learn are subclassed, and what computes is replaced: the initial parameters of the norms, both
kinds of solver, the forward pass. Private methods of scikit-learn are relied on, hence its upper bound in pyproject.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron
from sklearn.utils import check_random_state
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from wholebatch.feedforward.agreement import do_together, take_net, tell_numbers
from wholebatch.feedforward.data import Data, prepare_inputs
from wholebatch.feedforward.engine import NonFiniteLossError
from wholebatch.feedforward.engines import check_fit, check_predict, engine_kind
from wholebatch.feedforward.evaluation import score
from wholebatch.feedforward.footprint import net_bytes
from wholebatch.feedforward.held import Held
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.rows import check_rows, cut_shards, tell_sizes
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer
from wholebatch.sklearn import lbfgs, parameters
from wholebatch.sklearn.binding import NORM_ARRAYS, bind, cast, make_norm_arrays, torch_dtype
from wholebatch.sklearn.epochs import run_epochs
from wholebatch.sklearn.live import Team, Work, live_for, whole_table
from wholebatch.sklearn.spreading import check_alike, check_table, peers_of, share_random_state


class Perceptron(BaseMultilayerPerceptron):
    """The shared part; users meet it as ``MLPClassifier`` and ``MLPRegressor``."""

    _architecture: Architecture
    _best_coefs: list[np.ndarray]
    _best_intercepts: list[np.ndarray]
    best_validation_score_: Any
    validation_scores_: Any
    best_loss_: Any

    @abstractmethod
    def _objective(self) -> Loss:
        """What a step minimises."""

    @abstractmethod
    def _targets(self, y: np.ndarray, dtype: Any) -> np.ndarray:
        """``y`` ``(N, n_outputs)``, as scikit-learn encodes it, as the engine takes it."""

    def _weights(
        self, y: np.ndarray, sample_weight: np.ndarray | None, peers: Peers | None, *, incremental: bool
    ) -> np.ndarray | None:
        """The weight of each example, or None for equal ones."""
        return sample_weight

    def _reported(self, loss: float, penalty: float) -> float:
        """The loss as scikit-learn reports it, from the one that was minimised and the penalty in it."""
        return loss

    def to_torch(self) -> FeedForward:
        """The fitted net as a ``torch.nn.Module`` of its own, in eval mode.

        Its output is linear, ``(N, n_outputs_)``: classes still need ``softmax`` (several classes) or ``sigmoid`` (two
        classes, several labels), as ``out_activation_`` says.

        Raises:
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        return copy.deepcopy(bind(self, self._architecture))

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__().copy()
        state.pop("_live", None)  # threads and a lock; made again at the first use
        return state

    def _check_solver(self) -> bool:
        if self.solver == "adamw":
            return True
        return bool(super()._check_solver())

    def _initialize(self, y: np.ndarray, layer_units: list[int], dtype: Any) -> None:
        super()._initialize(y, layer_units, dtype)
        if self.solver == "adamw":  # scikit-learn does this for the stochastic solvers that it knows
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
            stops = self.early_stopping
            self.best_loss_ = None if stops else np.inf
            self.validation_scores_ = [] if stops else None
            self.best_validation_score_ = -np.inf if stops else None
        make_norm_arrays(self, self._architecture, dtype)
        if not self._architecture.hidden_bias:
            for intercept in self.intercepts_[:-1]:
                intercept[:] = 0
        if self.early_stopping:
            self._best_intercepts = [array.copy() for array in self.intercepts_]
            self._keep_best_norms()
        else:
            self._best_coefs, self._best_intercepts = [], []

    def _init_coef(self, fan_in: int, fan_out: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        # scikit-learn's numbers, and its name "logistic" under torch's too
        bound = np.sqrt((2.0 if self.activation in ("logistic", "sigmoid") else 6.0) / (fan_in + fan_out))
        coef = self._random_state.uniform(-bound, bound, (fan_in, fan_out))
        intercept = self._random_state.uniform(-bound, bound, fan_out)
        return coef.astype(dtype, order="F"), intercept.astype(dtype)

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        engine_kind(self.engine, self.device)  # a device that is not there is told before a row is looked at
        peers = peers_of(self)
        hidden = parameters.hidden_sizes(self.hidden_layer_sizes)
        first = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        if peers is None:
            X, y = self._validate_input(X, y, incremental, reset=first)
            if sample_weight is not None:
                sample_weight = _check_sample_weight(sample_weight, X)
            samples = X.shape[0]
        else:
            X, y, sample_weight = do_together(peers, lambda: check_table(self, X, y, sample_weight, reset=first))
            check_alike(peers, self, X, y, first=first)
            y = self._encode(y, peers, incremental=incremental)
            samples = int(tell_numbers(peers, [X.shape[0]]).sum())
        if y.ndim == 1:
            y = y.reshape((-1, 1))
        architecture = parameters.architecture(self, X.shape[1], hidden, y.shape[1])
        if architecture.waits and samples < 2:
            raise ValueError(
                "norm='batch' needs at least 2 samples to have a variance, got 1 sample; give more rows at a time, "
                "or choose norm='layer', norm='rms' or norm=None"
            )
        if not first:
            _check_continues(self._architecture, architecture)
        dtype = X.dtype if first else self.coefs_[0].dtype
        do_together(peers, lambda: parameters.check_precision(self, dtype))
        self._architecture = architecture
        self.n_outputs_ = y.shape[1]
        if not incremental:
            self._live = None  # its memory is free again before more is asked for
        do_together(peers, lambda: self._check_memory(X.shape[0], X.dtype, peers, first=first))
        if peers is None:
            self._random_state = check_random_state(self.random_state)
        else:
            self._random_state = share_random_state(peers, self.random_state)
        if first:
            self._initialize(y, [*architecture.sizes], X.dtype)
        if peers is not None:
            take_net(peers, bind(self, architecture))
        sample_weight = self._weights(y, sample_weight, peers, incremental=incremental)
        try:
            if self.solver == "lbfgs":
                self._fit_by_lbfgs(X, y, sample_weight, peers)
            else:
                run_epochs(self, X, y, sample_weight, incremental=incremental, peers=peers)
        except NonFiniteLossError as error:
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                f"preprocessed: {error}"
            ) from error
        return self

    def _encode(self, y: np.ndarray, peers: Peers, *, incremental: bool) -> np.ndarray:
        """Targets that were checked, as scikit-learn encodes them, by what all ranks have."""
        return y

    def _check_memory(self, rows: int, dtype: Any, peers: Peers | None, *, first: bool) -> None:
        """Refuse a training that does not fit in memory, before any is taken.

        Raises:
            ValueError: naming the bytes needed and free, and the remedy.
        """
        if vars(self).get("_live") is not None:  # partial_fit goes on with what it has
            return
        by_lbfgs = self.solver == "lbfgs"
        kind = torch.float64 if by_lbfgs else torch_dtype(dtype)
        net = net_bytes(self._architecture, kind) * (first + bool(self.early_stopping))
        if by_lbfgs:
            net += lbfgs.VECTORS * net_bytes(self._architecture, kind, buffers=False)
        held = math.ceil(rows * self.validation_fraction) if self.early_stopping and not by_lbfgs else 0
        own = rows if by_lbfgs else parameters.batch_rows(self.batch_size, rows - held)
        if peers is not None and not by_lbfgs:
            own = -(-own // peers.ranks)
        check_fit(
            self._architecture,
            Optimizer("sgd") if by_lbfgs else parameters.optimizer(self),
            own,
            kind,
            n_threads=Team.of(self).n_threads,
            engine=self.engine,
            held=held,
            net=net,
            peers=peers,
            matmul_precision=self.matmul_precision,
            device=self.device,
        )

    def _fit_by_lbfgs(self, X: Any, y: np.ndarray, sample_weight: np.ndarray | None, peers: Peers | None) -> None:
        if self.dropout:
            raise ValueError(
                f"dropout={self.dropout} with solver='lbfgs': L-BFGS needs the same loss at every evaluation; "
                "use solver='adam', 'adamw' or 'sgd', or dropout=0"
            )
        dtype = self.coefs_[0].dtype
        cast(self, np.float64)
        try:
            data, counts = self._data(X, y, sample_weight), None
            if peers is not None:
                data = check_rows(peers, data)
                counts = np.array([tell_sizes(peers, cut_shards(peers, len(data)))])
            weight = data.sample_weight
            own = [len(data)] * 2 if weight is None else [weight.sum(), np.count_nonzero(weight)]
            total, weighed = tell_numbers(peers, own).sum(0)
            work = whole_table(Work(self._architecture, self._objective(), Optimizer("sgd"), 0, peers))
            engine = live_for(self, work).engine
            verbose = self.verbose is True or self.verbose >= 1
            found = lbfgs.minimise(
                engine, data, counts, max_iter=self.max_iter, max_fun=self.max_fun, tol=self.tol, verbose=verbose
            )
            self.n_iter_ = _check_optimize_result("lbfgs", found, self.max_iter)
            squares = sum(float(np.vdot(coef, coef)) for coef in self.coefs_)
            self.loss_ = self._reported(found.fun, 0.5 * self.alpha * squares / total)
            if self._architecture.waits:
                lbfgs.take_statistics(engine, data, counts, max(total, weighed))
                self._read_batches_tracked(engine.model)
        finally:
            cast(self, dtype)

    def _data(self, X: Any, y: np.ndarray, sample_weight: np.ndarray | None) -> Data:
        """A table that scikit-learn has checked, as an engine takes it, in the net's dtype."""
        dtype = self.coefs_[0].dtype
        x = prepare_inputs(X, self._architecture.in_features, torch_dtype(dtype), checked=X.dtype == dtype)
        weight = None if sample_weight is None else np.ascontiguousarray(sample_weight, dtype)
        return Data(x, np.ascontiguousarray(self._targets(y, dtype)), weight)

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> np.ndarray:
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        dtype = torch_dtype(self.coefs_[0].dtype)
        x = prepare_inputs(X, self._architecture.in_features, dtype)
        made = vars(self).get("_live") is not None
        how = {"n_threads": Team.of(self).n_threads, "engine": self.engine, "device": self.device}
        check_predict(self._architecture, x.shape[0], dtype, made=made, **how)
        live = live_for(self)
        with live.lock:
            out = live.engine.predict(x)
        if self.out_activation_ == "softmax":
            return np.asarray(softmax(out, axis=1))
        return np.asarray(expit(out)) if self.out_activation_ == "logistic" else out

    def _score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        if not isinstance(X, Held):
            found: float = super()._score(X, y, sample_weight=sample_weight)
            return found
        out = X.predict(live_for(self).engine)
        return score(out, X.whole, self._objective()) if np.isfinite(out).all() else math.nan

    def _update_no_improvement_count(self, early_stopping: bool, X: Any, y: Any, sample_weight: Any) -> None:
        before = self.best_validation_score_
        super()._update_no_improvement_count(early_stopping, X, y, sample_weight)
        if early_stopping and self.best_validation_score_ > before:
            self._keep_best_norms()

    def _keep_best_norms(self) -> None:
        self._best_norms = {name: [array.copy() for array in getattr(self, name)] for name in NORM_ARRAYS}

    def _restore_best(self) -> None:
        best = {"coefs_": self._best_coefs, "intercepts_": self._best_intercepts, **self._best_norms}
        for name, arrays in best.items():  # copies: a later warm start must not write into the best
            setattr(self, name, [array.copy() for array in arrays])

    def _read_batches_tracked(self, net: FeedForward) -> None:
        for name, value in net.named_buffers():
            if name.endswith("num_batches_tracked"):
                self._batches_tracked = int(value)


def _check_continues(before: Architecture, now: Architecture) -> None:
    """Refuse to go on with a net of another build: ``warm_start`` and ``partial_fit`` keep the fitted parameters.

    Raises:
        ValueError: naming what changed.
    """
    for name in ("in_features", "hidden_layer_sizes", "out_features", "norm", "hidden_bias"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            raise ValueError(
                f"the fitted net has {name}={old!r}, it is now asked to go on with {name}={new!r}; "
                "set warm_start=False and call fit, or clone the estimator, to start anew"
            )
