"""The stochastic solvers: scikit-learn's epochs, stopping rules and messages around one engine call per epoch.

Rows are split and shuffled with scikit-learn's generator in scikit-learn's order, so without a norm the loss curve
and the parameters are scikit-learn's own to rounding.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from wholebatch.feedforward.data import as_tensor
from wholebatch.feedforward.engine import Engine, NonFiniteLossError
from wholebatch.feedforward.peers import Peers
from wholebatch.sklearn import parameters
from wholebatch.sklearn.live import Live, Work, live_for
from wholebatch.sklearn.portion import take_all, take_own


def run_epochs(
    estimator: Any,
    x: Any,
    y: np.ndarray,
    weight: np.ndarray | None,
    *,
    incremental: bool,
    peers: Peers | None = None,
) -> None:
    """Train until a stopping rule holds, ``max_iter`` epochs are done, or Ctrl-C; one epoch where ``incremental``.

    Where other ranks train too, Ctrl-C is an error: they could not go on with what this one has.

    Raises:
        ValueError: early stopping where ``incremental``, or with fewer than 2 rows to validate on.
        NonFiniteLossError: naming epoch, step and layer.
    """
    if incremental and estimator.early_stopping:
        raise ValueError("partial_fit does not support early_stopping=True")
    portion = take_all(estimator, x, y, weight) if peers is None else take_own(estimator, x, y, weight, peers)
    if estimator.batch_size != "auto" and estimator.batch_size > portion.rows:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
        )
    live = start(estimator, peers, fresh=not (incremental and hasattr(estimator, "_optimizer")))
    try:
        estimator.n_iter_ = 0
        for _, order in zip(range(estimator.max_iter), portion.orders, strict=False):
            rates = np.full(len(portion.offsets) - 1, float(estimator._optimizer.learning_rate))
            try:
                result = live.engine.train_epoch(portion.data, order, portion.offsets, rates, counts=portion.counts)
            except NonFiniteLossError as error:
                raise error.in_epoch(estimator.n_iter_ + 1) from None
            estimator.n_iter_ += 1
            estimator.loss_ = estimator._reported(result.loss, result.penalty)
            estimator.t_ += portion.rows
            estimator.loss_curve_.append(estimator.loss_)
            if estimator.verbose:
                print(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
            stops = end_epoch(estimator, live.engine, portion.held)
            if stops or incremental:
                break
            if estimator.n_iter_ == estimator.max_iter:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({estimator.max_iter}) reached and the optimization "
                    "hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=4,
                )
    except KeyboardInterrupt:
        if peers is not None and peers.ranks > 1:
            raise
        warnings.warn("Training interrupted by user.", stacklevel=4)
    finish(estimator, live.engine)


def start(estimator: Any, peers: Peers | None, *, fresh: bool) -> Live:
    """The engine, with a fresh optimizer, or (``partial_fit``) with the state of the earlier calls' optimizer."""
    if fresh:
        estimator._optimizer = parameters.schedule(estimator)
        estimator._update_rule = parameters.optimizer(estimator)
        # Only dropout needs a seed; not drawing one otherwise keeps the generator where scikit-learn has it.
        estimator._dropout_seed = estimator._random_state.randint(2**31 - 1) if estimator.dropout else 0
        estimator._steps, estimator._optimizer_state = 0, {}
        estimator._live = None
    work = Work(
        estimator._architecture,
        estimator._objective(),
        estimator._update_rule,
        estimator._dropout_seed,
        peers,
        estimator.matmul_precision,
    )
    live = live_for(estimator, work)
    if not fresh:
        live.engine.step = estimator._steps
        live.engine.optimizer_state = {name: as_tensor(state) for name, state in estimator._optimizer_state.items()}
    return live


def end_epoch(estimator: Any, engine: Engine, held: Any) -> bool:
    """Scores, stopping rules and the learning rate after an epoch, by scikit-learn's own code; True: stop."""
    schedule = estimator._optimizer
    rate = schedule.learning_rate
    estimator._update_no_improvement_count(estimator.early_stopping, *(held or (None, None, None)))
    schedule.iteration_ends(estimator.t_)
    stops = False
    if estimator._no_improvement_count > estimator.n_iter_no_change:
        what = "Validation score" if estimator.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={estimator.tol:f} "
            f"for {estimator.n_iter_no_change:d} consecutive epochs."
        )
        stops = schedule.trigger_stopping(message, estimator.verbose)
        if not stops:
            estimator._no_improvement_count = 0
    if schedule.learning_rate not in (rate, 0.0):
        rescale_momentum(engine, rate / schedule.learning_rate)
    return bool(stops)


def rescale_momentum(engine: Engine, ratio: float) -> None:
    """Give the momentum its past learning rate back.

    scikit-learn keeps the velocity ``v = mu v - rate g``, torch the buffer ``b = mu b + g`` with the step ``rate * b``.
    They are the same while the rate stays; when it changes, ``b`` times old / new rate is scikit-learn's ``v`` again.
    """
    engine.optimizer_state = {
        name: state * ratio if name.startswith("momentum_buffer.") else state
        for name, state in engine.optimizer_state.items()
    }


def finish(estimator: Any, engine: Engine) -> None:
    """Keep what a later ``partial_fit`` continues from; after early stopping, go back to the best epoch."""
    estimator._steps = engine.step
    estimator._optimizer_state = {name: state.detach().numpy() for name, state in engine.optimizer_state.items()}
    estimator._read_batches_tracked(engine.model)
    if estimator.early_stopping:
        estimator._restore_best()
