"""The stochastic solvers: scikit-learn's epochs, stopping rules and messages around one engine call per epoch.

Rows are split and shuffled with scikit-learn's generator in scikit-learn's order, so without a norm the loss curve
and the parameters are scikit-learn's own to rounding.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing

from wholebatch.feedforward.data import as_tensor, batch_offsets
from wholebatch.feedforward.engine import Engine, NonFiniteLossError
from wholebatch.sklearn import parameters
from wholebatch.sklearn.live import Live, Work, live_for


def run_epochs(estimator: Any, x: Any, y: np.ndarray, weight: np.ndarray | None, *, incremental: bool) -> None:
    """Train until a stopping rule holds, ``max_iter`` epochs are done, or Ctrl-C; one epoch where ``incremental``.

    Raises:
        ValueError: early stopping where ``incremental``, or with fewer than 2 rows to validate on.
        NonFiniteLossError: naming epoch, step and layer.
    """
    if incremental and estimator.early_stopping:
        raise ValueError("partial_fit does not support early_stopping=True")
    kept, held = np.arange(x.shape[0], dtype=np.int64), None
    if estimator.early_stopping:
        kept, held = hold_out(estimator, x, y, weight)
    data = estimator._data(x, y, weight)
    rows = len(kept)
    if estimator.batch_size != "auto" and estimator.batch_size > rows:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
        )
    offsets = batch_offsets(rows, parameters.batch_rows(estimator.batch_size, rows), estimator._architecture)
    live = start(estimator, fresh=not (incremental and hasattr(estimator, "_optimizer")))
    order = kept
    try:
        estimator.n_iter_ = 0
        for _ in range(estimator.max_iter):
            if estimator.shuffle:
                steps = np.arange(rows)
                estimator._random_state.shuffle(steps)  # what sklearn.utils.shuffle does, without its many checks
                order = order[steps]
            rates = np.full(len(offsets) - 1, float(estimator._optimizer.learning_rate))
            try:
                result = live.engine.train_epoch(data, order, offsets, rates)
            except NonFiniteLossError as error:
                raise error.in_epoch(estimator.n_iter_ + 1) from None
            estimator.n_iter_ += 1
            estimator.loss_ = estimator._reported(result.loss, result.penalty)
            estimator.t_ += rows
            estimator.loss_curve_.append(estimator.loss_)
            if estimator.verbose:
                print(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
            stops = end_epoch(estimator, live.engine, held)
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
        warnings.warn("Training interrupted by user.", stacklevel=4)
    finish(estimator, live.engine)


def hold_out(estimator: Any, x: Any, y: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, Any]:
    """The rows to train on, and (x, y, weight) to validate on, split as scikit-learn splits them.

    The rows to train on stay where they are in the table; only those to validate on are copied.

    Raises:
        ValueError: fewer than 2 rows to validate on.
    """
    classifies = is_classifier(estimator)
    kept, out = train_test_split(
        np.arange(x.shape[0], dtype=np.int64),
        random_state=estimator._random_state,
        test_size=estimator.validation_fraction,
        stratify=y if classifies and estimator.n_outputs_ == 1 else None,
    )
    if len(out) < 2:
        raise ValueError("The validation set is too small. Increase 'validation_fraction' or the size of your dataset.")
    y_held = estimator._label_binarizer.inverse_transform(y[out]) if classifies else y[out]
    return kept, (_safe_indexing(x, out), y_held, None if weight is None else weight[out])


def start(estimator: Any, *, fresh: bool) -> Live:
    """The engine, with a fresh optimizer, or (``partial_fit``) with the state of the earlier calls' optimizer."""
    if fresh:
        estimator._optimizer = parameters.schedule(estimator)
        estimator._update_rule = parameters.optimizer(estimator)
        # Only dropout needs a seed; not drawing one otherwise keeps the generator where scikit-learn has it.
        estimator._dropout_seed = estimator._random_state.randint(2**31 - 1) if estimator.dropout else 0
        estimator._steps, estimator._optimizer_state = 0, {}
        estimator._live = None
    work = Work(estimator._architecture, estimator._objective(), estimator._update_rule, estimator._dropout_seed)
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
