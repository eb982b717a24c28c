"""What every engine does.

An engine trains a :class:`FeedForward` in place: it reads the net's parameters at the start of an epoch and writes
them back at its end, so an epoch that is interrupted (Ctrl-C, a loss that is not finite) leaves the net as it was
before that epoch. There are three: ``native`` (C++, example-threads), ``reference`` (torch and autograd) and ``device``
(whole steps on a GPU), and the same tests run over all of them.

With peers (:class:`wholebatch.feedforward.peers.Peers`) the mini-batch is cut into shards, and an engine holds the rows
of its own ones. Every rank makes the same calls; after each of them every rank has the same net, optimizer state and
result, bit for bit:

- sums are over each shard, and then over the shards in order, in float64 or the net's dtype; moments merge by Chan's
  formula, where a shard without rows is passed over;
- a row's place in the whole mini-batch, shard after shard, is what dropout's masks are a function of;
- running statistics are those of the whole mini-batch, whatever ``spread.sync`` says;
- ``sync="late"`` merges the own moments of this step and the others' of the step before, in the order of the shards,
  and differentiates with the others' as constants. They are those of the sums ``W x`` themselves: whoever takes a
  centre from x has to put it right there, too, and in the gradient of W, as dZ no longer sums to zero. Each epoch
  begins anew, with the own moments alone, so that a run which goes on from a checkpoint does what one that was not
  stopped does;
- one shard is the whole mini-batch: what an engine without peers does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from wholebatch.feedforward.data import Data
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Loss, Optimizer

Progress = Callable[[int, float], None]


class NonFiniteLossError(ValueError):
    """The loss became nan or infinite. ``step`` counts within the epoch from 1; ``layer`` from 1, 0 is the input."""

    def __init__(self, step: int, layer: int, layers: int, epoch: int | None = None, subject: str = "the loss") -> None:
        self.epoch, self.step, self.layer, self.layers, self.subject = epoch, step, layer, layers, subject
        where = f"epoch {epoch}, step {step}" if epoch is not None else f"step {step}"
        what = "the input" if layer == 0 else f"layer {layer} of {layers}"
        super().__init__(
            f"{subject} is not finite in {where}; the first value that is not finite appeared in {what}. "
            "Lower the learning rate, or clip the gradient (max_grad_norm)"
        )

    def in_epoch(self, epoch: int) -> NonFiniteLossError:
        """The same error, with the epoch (from 1) named."""
        return NonFiniteLossError(self.step, self.layer, self.layers, epoch, self.subject)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # Exceptions pickle by their message alone; a worker process of joblib has to hand this one back whole.
        return type(self), (self.step, self.layer, self.layers, self.epoch, self.subject)


def check_parameters(model: FeedForward, step: int) -> None:
    """Raise where the last update of an epoch, ``step``, left a parameter that is not finite: no later loss would tell.

    Raises:
        NonFiniteLossError: naming the first layer with such a parameter.
    """
    parts = model.parts()
    for number, part in enumerate(parts, 1):
        if not all(bool(torch.isfinite(tensor).all()) for _, _, tensor in part.parameters()):
            raise NonFiniteLossError(step, number, len(parts), subject="the update")


@dataclass(frozen=True)
class EpochResult:
    """``loss``: mean over the epoch's examples of their mini-batch's loss, before each update.

    ``penalty`` is the part of it that ``Loss.alpha`` adds: 0 without alpha. All are of the whole mini-batches.
    """

    loss: float
    examples: int
    steps: int
    penalty: float = 0.0


class Engine(Protocol):
    """Trains ``model`` in place. ``step`` counts optimizer steps done: it drives Adam's bias correction and dropout.

    ``optimizer_state`` maps ``"<state name>.<parameter name>"`` (say ``exp_avg.layers.0.weight``) to tensors like the
    parameter; with ``step`` it is all that a resumed run needs besides the net itself.

    ``predicted_rows``: an output's bits may depend on the row's place among so many that are predicted in one go; 1:
    on the row alone.
    """

    model: FeedForward
    loss: Loss
    optimizer: Optimizer
    step: int
    optimizer_state: dict[str, Tensor]
    predicted_rows: ClassVar[int]

    def train_epoch(
        self,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        learning_rates: np.ndarray,
        progress: Progress | None = None,
        *,
        counts: np.ndarray | None = None,
    ) -> EpochResult:
        """One pass: step s takes rows ``order[offsets[s]:offsets[s+1]]`` with ``learning_rates[s]``.

        ``progress(examples so far, mean loss so far)`` is called a few times a second, on the calling thread.

        With peers the rows are this rank's: those of a step stand shard after shard, in the order of ``peers.own``.
        ``counts`` ``(steps, shards)`` int64 says how many rows each mini-batch has of every shard, also of the other
        ranks'; without peers it is None.

        The net's training flag and gradients stay as they are.

        Raises:
            NonFiniteLossError: with the step and the layer; also where only the epoch's last update went wrong.
            KeyboardInterrupt: within a second of Ctrl-C.
            MeetingError: another rank failed, and where.
        """
        ...

    def gradients(
        self, data: Data, *, update_running_statistics: bool = False, counts: np.ndarray | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """The loss of ``data`` as one mini-batch in training mode, and its gradient by parameter name.

        With peers ``data`` are this rank's rows of it, shard after shard, and ``counts`` ``(1, shards)`` those of all.
        """
        ...

    def predict(self, x: object) -> np.ndarray:
        """Outputs ``(N, out_features)`` in eval mode: running statistics, no dropout; ``x`` from ``prepare_inputs``."""
        ...


def make_state(model: FeedForward, optimizer: Optimizer) -> dict[str, Tensor]:
    """An engine's ``optimizer_state`` before the first step: zeros."""
    return {
        f"{state}.{name}": torch.zeros_like(parameter)
        for state in optimizer.state_names
        for name, parameter in model.named_parameters()
    }
