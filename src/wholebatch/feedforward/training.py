"""Epochs: learning-rate schedules, validation, early stopping, and what a resumed run continues from.

Between two epochs a run is its net, the optimizer's state and a few numbers (:class:`State`). Shuffling and dropout are
functions of seed, epoch and step, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from wholebatch.devices import check_device
from wholebatch.feedforward.agreement import check_equal, digest, do_together, take_net
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.engine import Engine, NonFiniteLossError
from wholebatch.feedforward.engines import check_fit, describe_engine, engine_kind, make_engine
from wholebatch.feedforward.evaluation import check_scorable, default_loss
from wholebatch.feedforward.footprint import net_bytes
from wholebatch.feedforward.held import Held
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.peers import Peers, find_peers
from wholebatch.feedforward.rows import deal_rows, take_rows
from wholebatch.feedforward.settings import Loss, MatmulPrecision, Optimizer, Split, check_precision
from wholebatch.feedforward.sharding import Deal
from wholebatch.feedforward.spread import Spread
from wholebatch.feedforward.state import History, State

__all__ = ["History", "Schedule", "State", "Training", "Watch", "fit"]

Schedule = Literal["constant", "cosine", "linear", "one_cycle", "exponential"]
Watch = Literal["score", "loss"]


@dataclass(frozen=True)
class Training:
    """How long and in which portions to train.

    ``schedule`` gives the learning rate of step s of S: ``constant``; ``cosine`` ``lr * (1 + cos(pi s/S)) / 2``;
    ``linear`` ``lr * (1 - s/S)``; ``one_cycle`` linear up to ``lr`` over the first 30 % and cosine down to 0;
    ``exponential`` ``lr * decay^epoch``. ``warmup_steps`` raises any of them linearly from 0.

    ``patience``: stop after so many epochs without a validation score that is better by ``min_delta``, and go back to
    the best epoch's parameters; None trains all epochs.
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
    watch: Watch = "score"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if self.seed >= 2**64:
            raise ValueError(f"seed is {self.seed}; it must be below 2**64, the key of the dropout masks")
        if self.schedule not in get_args(Schedule):
            known = ", ".join(map(repr, get_args(Schedule)))
            raise ValueError(f"schedule is {self.schedule!r}; choose one of {known}")
        if self.watch not in get_args(Watch):
            raise ValueError(f"watch is {self.watch!r}; choose 'score' or 'loss'")
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
            rate = np.where(s < top, base * np.minimum(1.0, (s + 1) / top), down)
        elif self.schedule == "exponential":
            rate = np.full(steps, base * self.decay**epoch)
        else:
            rate = np.full(steps, base)
        if self.warmup_steps:
            rate = rate * np.minimum(1.0, (s + 1) / self.warmup_steps)
        return rate


AfterEpoch = Callable[[State], None]
EpochProgress = Callable[[int, int, float], None]


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
    matmul_precision: MatmulPrecision = "highest",
    device: torch.device | str | None = None,
    resume: State | None = None,
    progress: EpochProgress | None = None,
    after_epoch: AfterEpoch | None = None,
    spread: Spread | None = None,
    process_group: ProcessGroup | str | None = "world",
) -> History:
    """Train ``model`` in place and return its history; the net is left in eval mode, however training ends.

    With ``spread`` every rank of the process group calls this with rows of its own and the same settings, and every
    mini-batch has rows of all ranks. The net begins with rank 0's parameters (or what is resumed), and ends with the
    same bits on every rank.

    Args:
        x: ``(N, in_features)`` array, tensor or CSR matrix.
        y: class indices ``(N,)``, or values or labels ``(N, out_features)``.
        sample_weight: ``(N,)``, none negative.
        validation: ``(x, y)`` or ``(x, y, sample_weight)`` of rows held out; needed for ``training.patience``.
        loss: defaults to cross-entropy for integers, else MSE.
        matmul_precision: of the products of training, by the names of ``torch.set_float32_matmul_precision``:
            ``highest`` float32; ``high`` each number as the sum of two of bfloat16; ``medium`` of bfloat16. Sums,
            norms, loss, optimizer and parameters stay float32, and predictions are always of the highest.
        device: where to compute, say ``"cuda"``, wherever the net lies; None: where it lies. A net that lies on a GPU
            stays there.
        resume: the :class:`State` that an earlier run's ``after_epoch`` was given: goes on from there.
        progress: called a few times a second with (epoch from 1, examples done in it, mean loss so far).
        after_epoch: called after each epoch with the :class:`State` to keep, on every rank.
        spread: how mini-batches are spread over ranks; None: this process has all rows. ``x``, ``y`` and
            ``sample_weight`` are then this rank's rows, those of its shards one behind the other (as
            :func:`wholebatch.feedforward.sharding.shard_bounds` cuts them); there may be none. ``validation`` has rows
            of its own too: the whole is rank after rank, and every rank gets the same loss and score.
        process_group: with ``spread``: a process group, ``"world"`` for the default one, or None: this process alone
            holds all shards, and ends with the bits of as many ranks as there are shards.

    Raises:
        ValueError: data that do not fit the net, a precision that the net's dtype does not have, patience without
            validation, a state to resume of another optimizer, a net that is not on the CPU, buffers that do not fit in
            memory (naming the bytes needed and free), a loss that is not finite (:class:`NonFiniteLossError`, naming
            epoch, step and layer); over ranks, settings that are not the same on all of them. What one rank finds wrong
            all ranks raise.
        MeetingError: another rank failed or stopped in the middle of the training, and where.
        KeyboardInterrupt: Ctrl-C; the net is as after the last whole epoch.
    """
    optimizer, training = optimizer or Optimizer(), training or Training()
    peers = find_peers(spread, process_group)
    loss = do_together(peers, lambda: _check(model, y, loss, training, validation, matmul_precision))
    architecture, dtype = model.architecture, model.parts()[0].linear.weight.dtype
    place = do_together(peers, lambda: _find_device(model, device))
    described = do_together(peers, lambda: describe_engine(engine, n_threads, matmul_precision, place))
    if peers is not None:
        same = _settings(peers, model, loss, optimizer, training, described, validation, resume)
        check_equal(peers, {"matmul_precision": matmul_precision, **same})
    data = take_rows(peers, x, y, sample_weight, architecture, loss, dtype)
    deal = deal_rows(peers, len(data), training.batch_size, architecture)
    held = None
    if validation is not None:
        held_x, held_y, held_weight = (*validation, None)[:3]
        of_rank = take_rows(peers, held_x, held_y, held_weight, architecture, loss, dtype)
        held = Held(of_rank, loss, peers, engine_kind(engine, place).predicted_rows)
        check_scorable(held.whole, loss)

    def make_runner() -> tuple[Engine, dict[str, Tensor] | None]:
        check_fit(
            architecture,
            optimizer,
            deal.most_rows,
            dtype,
            n_threads=n_threads,
            engine=engine,
            held=0 if held is None else len(held),
            net=net_bytes(architecture, dtype) if training.patience else 0,
            peers=peers,
            matmul_precision=matmul_precision,
            device=place,
        )
        runner = make_engine(
            model,
            loss,
            optimizer,
            seed=training.seed,
            n_threads=n_threads,
            split=split,
            engine=engine,
            peers=peers,
            matmul_precision=matmul_precision,
            device=place,
        )
        return runner, None if resume is None else resume.restore(runner)

    runner, best = do_together(peers, make_runner)
    if peers is not None:
        take_net(peers, model)
    history = History() if resume is None else replace(resume.history, epochs=list(resume.history.epochs))
    try:
        while len(history.epochs) < training.epochs and not history.stopped_early:
            best = _run_epoch(runner, data, held, deal, training, history, best, progress)
            if after_epoch is not None:
                after_epoch(State.of(runner, history, best))
    finally:
        model.eval()
    if best is not None:
        model.load_state_dict(best)
    return history


def _check(
    model: FeedForward,
    y: Any,
    loss: Loss | None,
    training: Training,
    validation: tuple[Any, ...] | None,
    matmul_precision: MatmulPrecision,
) -> Loss:
    """The loss to train by, where the net and the settings can be trained with."""
    check_precision(matmul_precision, model.parts()[0].linear.weight.dtype)
    if training.patience is not None and validation is None:
        raise ValueError(f"patience={training.patience} needs validation rows to watch; pass validation=(x, y)")
    return loss or default_loss(y)


def _find_device(model: FeedForward, device: torch.device | str | None) -> torch.device:
    """Where to compute.

    Raises:
        ValueError: a net that lies on several devices, on one without memory, or on a GPU that is not the one named.
    """
    check_device(device)
    devices = {tensor.device for tensor in model.state_dict().values()}
    named = ", ".join(sorted(map(str, devices)))
    (place, *others) = devices
    if others or place.type not in ("cpu", "cuda"):
        raise ValueError(f"fit trains nets on the CPU or on one GPU, this one is on {named}; use net.cpu()")
    wanted = place if device is None else torch.device(device)
    if place.type != "cpu" and (wanted.type != place.type or wanted.index not in (None, place.index)):
        raise ValueError(f"device is {str(device)!r}, and the net is on {named}; use net.to({str(device)!r})")
    return place if place.type != "cpu" else wanted


def _settings(
    peers: Peers,
    model: FeedForward,
    loss: Loss,
    optimizer: Optimizer,
    training: Training,
    engine: str,
    validation: tuple[Any, ...] | None,
    resume: State | None,
) -> dict[str, str]:
    """What has to be the same on all ranks, in words."""
    return {
        "the net": f"{model.architecture} in {model.parts()[0].linear.weight.dtype}",
        "the loss": str(loss),
        "the optimizer": str(optimizer),
        "the training": str(training),
        "the spread": str(peers.spread),
        "the engine": engine,
        "validation": "none" if validation is None else "rows held out",
        "the state to resume": "none" if resume is None else f"step {resume.step}, digest {digest(resume.tensors)}",
    }


def _run_epoch(
    runner: Engine,
    data: Data,
    held: Held | None,
    deal: Deal,
    training: Training,
    history: History,
    best: dict[str, Tensor] | None,
    progress: EpochProgress | None,
) -> dict[str, Tensor] | None:
    """One epoch into ``history``; returns the best epoch's parameters so far where validation rows are watched."""
    epoch = len(history.epochs)
    order = deal.order(training.seed, epoch, shuffle=training.shuffle)
    rates = training.learning_rates(runner.optimizer.learning_rate, epoch, deal.steps)
    counts = deal.counts if len(deal.sizes) > 1 else None  # one shard is what an engine without peers has
    tell = None if progress is None else partial(progress, epoch + 1)
    start = time.monotonic()
    try:
        result = runner.train_epoch(data, order, deal.offsets, rates, tell, counts=counts)
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
        row["validation_loss"], row["validation_score"] = held.evaluate(runner)
    history.epochs.append(row)
    if held is None or training.patience is None:
        return None
    best_row = None if history.best_epoch is None else history.epochs[history.best_epoch - 1]
    if best_row is None or _watched(row, training.watch) > _watched(best_row, training.watch) + training.min_delta:
        history.best_epoch, history.best_score = epoch + 1, row["validation_score"]
        best = {name: value.clone() for name, value in runner.model.state_dict().items()}
    history.stopped_early = history.stale() >= training.patience
    return best


def _watched(row: dict[str, float], watch: Watch) -> float:
    """What early stopping compares, higher is better; nan is worse than any number."""
    value = row["validation_score"] if watch == "score" else -row["validation_loss"]
    return -math.inf if math.isnan(value) else value
