"""Epochs: learning-rate schedules, validation, early stopping, and what a resumed run continues from.

The state between two epochs is complete in :class:`Progress`'s few numbers, the net and the engine's optimizer state: shuffling and dropout are functions of
seed, epoch and step, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from wholebatch.feedforward.data import Data, batch_offsets, prepare, shuffled
from wholebatch.feedforward.engine import Engine, NonFiniteLossError, make_engine
from wholebatch.feedforward.engine import Progress as StepProgress
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Loss, Optimizer, Split

Schedule = Literal["constant", "cosine", "linear", "one_cycle", "exponential"]


@dataclass(frozen=True)
class Training:
    """How long and in which portions to train.

    ``schedule`` gives the learning rate of step s of S: ``constant``; ``cosine`` ``lr * (1 + cos(pi s/S)) / 2``;
    ``linear`` ``lr * (1 - s/S)``; ``one_cycle`` linear up to ``lr`` over the first 30 % and cosine down to 0;
    ``exponential`` ``lr * decay^epoch``. ``warmup_steps`` raises any of them linearly from 0.

    ``patience``: stop after so many epochs without a validation score that is better by ``min_delta``, and go back to the
    best epoch's parameters; None trains all epochs.
    """

    epochs: int = 100
    batch_size: int = 128
    schedule: Schedule = "constant"
    decay: float = 0.95
    warmup_steps: int = 0
    shuffle: bool = True
    patience: int | None = None
    min_delta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if self.schedule not in get_args(Schedule):
            known = ", ".join(map(repr, get_args(Schedule)))
            raise ValueError(f"schedule is {self.schedule!r}; choose one of {known}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay!r}; it must be above 0 and at most 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience!r}; it must be at least 1, or None to train all epochs")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta is {self.min_delta!r}; it must be at least 0")

    def learning_rates(self, base: float, epoch: int, steps: int) -> np.ndarray:
        """The learning rate of each step of ``epoch`` (from 0), for ``steps`` steps an epoch: ``(steps,)`` float64."""
        s = np.arange(epoch * steps, (epoch + 1) * steps, dtype=np.float64)
        total = self.epochs * steps
        if self.schedule == "cosine":
            rate = 0.5 * base * (1 + np.cos(math.pi * s / total))
        elif self.schedule == "linear":
            rate = base * (1 - s / total)
        elif self.schedule == "one_cycle":
            top = max(1.0, 0.3 * total)
            down = 0.5 * base * (1 + np.cos(math.pi * np.clip((s - top) / max(1.0, total - top), 0, 1)))
            rate = np.where(s < top, base * (s + 1) / top, down)
        elif self.schedule == "exponential":
            rate = np.full(steps, base * self.decay**epoch)
        else:
            rate = np.full(steps, base)
        if self.warmup_steps:
            rate = rate * np.minimum(1.0, (s + 1) / self.warmup_steps)
        return rate


@dataclass
class History:
    """One dict per epoch (``epoch`` from 1, ``loss``, ``learning_rate``, ``seconds``, ``examples_per_second``, and the
    validation's ``validation_loss`` and ``validation_score`` where there is one), and how it ended."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None
    stopped_early: bool = False

    def stale(self) -> int:
        """Epochs since the best one."""
        return len(self.epochs) - (self.best_epoch or 0)


@dataclass
class State:
    """What a run is, between two epochs: everything a resumed run needs, as named tensors and plain values."""

    history: History
    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, engine: Engine, history: History, best: dict[str, Tensor] | None) -> State:
        tensors = {f"model.{n}": t for n, t in engine.model.state_dict().items()}
        tensors |= {f"optimizer.{n}": t for n, t in engine.optimizer_state.items()}
        tensors |= {f"best.{n}": t for n, t in (best or {}).items()}
        return cls(history, engine.step, {n: t.detach().clone() for n, t in tensors.items()})

    def restore(self, engine: Engine) -> dict[str, Tensor] | None:
        """Put net, optimizer and step back; returns the best epoch's parameters, if any."""
        engine.model.load_state_dict(self._named("model."))
        engine.optimizer_state = {n: t.clone() for n, t in self._named("optimizer.").items()}
        engine.step = self.step
        return self._named("best.") or None

    def _named(self, prefix: str) -> dict[str, Tensor]:
        return {n[len(prefix) :]: t for n, t in self.tensors.items() if n.startswith(prefix)}

    def values(self) -> dict[str, Any]:
        """The plain part, for JSON."""
        return {"step": self.step, "history": asdict(self.history)}


Scorer = Callable[[np.ndarray, Data], float]
AfterEpoch = Callable[[State], None]


def default_loss(y: Any) -> Loss:
    """Cross-entropy for a vector of integers, else MSE."""
    y = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    return Loss("cross_entropy") if y.ndim == 1 and np.issubdtype(y.dtype, np.integer) else Loss("mse")


def score(out: np.ndarray, data: Data, loss: Loss) -> float:
    """Higher is better: accuracy; exact-match accuracy for several labels; R^2 (averaged over outputs) for values."""
    from sklearn.metrics import accuracy_score, r2_score

    y, weight = data.y, data.sample_weight
    if loss.kind == "cross_entropy":
        return float(accuracy_score(y, out.argmax(1), sample_weight=weight))
    if loss.kind == "bce":
        return float(accuracy_score(y > 0.5, out > 0, sample_weight=weight))
    return float(r2_score(y, out, sample_weight=weight))


def evaluate(engine: Engine, data: Data, loss: Loss) -> tuple[float, float]:
    """(loss, score) of the net in eval mode."""
    from wholebatch.feedforward.reference import loss_value

    out = engine.predict(data.x)
    weight = None if data.sample_weight is None else torch.from_numpy(data.sample_weight)
    assert data.y is not None
    value = loss_value(loss, torch.from_numpy(out), torch.from_numpy(data.y), weight)
    return float(value), score(out, data, loss)


def fit(
    model: FeedForward,
    x: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    validation: tuple[Any, ...] | None = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    training: Training | None = None,
    n_threads: int | None = None,
    split: Split = "auto",
    engine: str = "auto",
    resume: State | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    after_epoch: AfterEpoch | None = None,
) -> History:
    """Train ``model`` in place and return its history; the net is left in eval mode.

    Args:
        x: ``(N, in_features)`` array, tensor or CSR matrix.
        y: class indices ``(N,)``, or values or labels ``(N, out_features)``.
        sample_weight: ``(N,)``, none negative.
        validation: ``(x, y)`` or ``(x, y, sample_weight)`` of rows held out; needed for ``training.patience``.
        loss: defaults to cross-entropy for integers, else MSE.
        resume: the :class:`State` that an earlier run's ``after_epoch`` was given: goes on from there.
        progress: called a few times a second with (epoch from 1, examples done in it, mean loss so far).
        after_epoch: called after each epoch with the :class:`State` to keep.

    Raises:
        ValueError: data that do not fit the net, patience without validation, a loss that is not finite
            (:class:`NonFiniteLossError`, naming epoch, step and layer).
        KeyboardInterrupt: Ctrl-C; the net is as after the last whole epoch.
    """
    loss = loss or default_loss(y)
    optimizer, training = optimizer or Optimizer(), training or Training()
    dtype = model.parts()[0].linear.weight.dtype
    data = prepare(x, y, sample_weight, model.architecture, loss, dtype)
    held = None
    if validation is not None:
        held = prepare(*validation[:2], validation[2] if len(validation) > 2 else None, model.architecture, loss, dtype)
    if training.patience is not None and held is None:
        raise ValueError(f"patience={training.patience} needs validation rows to watch; pass validation=(x, y)")
    offsets = batch_offsets(len(data), training.batch_size, model.architecture)
    runner = make_engine(
        model, loss, optimizer, seed=training.seed, n_threads=n_threads, split=split, engine=engine
    )
    history, best = History(), None
    if resume is not None:
        history = copy.deepcopy(resume.history)
        best = resume.restore(runner)
    while len(history.epochs) < training.epochs and not history.stopped_early:
        best = _run_epoch(runner, data, held, offsets, training, history, best, progress)
        if after_epoch is not None:
            after_epoch(State.of(runner, history, best))
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return history


def _run_epoch(
    runner: Any,
    data: Data,
    held: Data | None,
    offsets: np.ndarray,
    training: Training,
    history: History,
    best: dict[str, Tensor] | None,
    progress: Callable[[int, int, float], None] | None,
) -> dict[str, Tensor] | None:
    """One epoch into ``history``; returns the best epoch's parameters so far where validation rows are watched."""
    epoch = len(history.epochs)
    steps = len(offsets) - 1
    order = shuffled(len(data), training.seed, epoch) if training.shuffle else np.arange(len(data))
    rates = training.learning_rates(runner.optimizer.learning_rate, epoch, steps)
    tell: StepProgress | None = None
    if progress is not None:
        tell = lambda done, mean: progress(epoch + 1, done, mean)  # noqa: E731
    start = time.monotonic()
    try:
        result = runner.train_epoch(data, order, offsets, rates, tell)
    except NonFiniteLossError as error:
        raise error.in_epoch(epoch + 1) from None
    seconds = time.monotonic() - start
    row = {
        "epoch": epoch + 1,
        "loss": result.loss,
        "learning_rate": float(rates[-1]),
        "seconds": seconds,
        "examples_per_second": result.examples / max(seconds, 1e-9),
    }
    if held is not None:
        row["validation_loss"], row["validation_score"] = evaluate(runner, held, runner.loss)
    history.epochs.append(row)
    if held is None or training.patience is None:
        return None
    better = history.best_score is None or row["validation_score"] > history.best_score + training.min_delta
    if better:
        history.best_epoch, history.best_score = epoch + 1, row["validation_score"]
        best = {name: value.clone() for name, value in runner.model.state_dict().items()}
    history.stopped_early = history.stale() >= training.patience
    return best
