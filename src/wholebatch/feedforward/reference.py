"""The reference engine: the same training in plain torch and autograd, in the net's own dtype.

It is the twin that the native engine's tests run against (in float64 it is the oracle), and what people without a
compiler get. It meets far more often than the native engine: torch opens a parallel region per operation.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from wholebatch.feedforward.batches import Batches, as_dense
from wholebatch.feedforward.data import Data, as_tensor
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.feedforward.engine import EpochResult, NonFiniteLossError, Progress, check_parameters, make_state
from wholebatch.feedforward.losses import loss_value
from wholebatch.feedforward.module import FeedForward, in_mode
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.products import apply_linear
from wholebatch.feedforward.settings import Loss, MatmulPrecision, Optimizer
from wholebatch.feedforward.sharded import Found, Sharded
from wholebatch.feedforward.torch_threads import torch_threads

PROGRESS_SECONDS = 0.1


def make_optimizer(optimizer: Optimizer, model: nn.Module, **how: bool) -> torch.optim.Optimizer:
    """torch's own optimizer for these settings; ``how`` names one of its implementations, ``fused`` or ``foreach``."""
    o, parameters = optimizer, list(model.parameters())
    if o.kind == "sgd":
        return torch.optim.SGD(
            parameters, o.learning_rate, o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov, **how
        )
    kind = torch.optim.Adam if o.kind == "adam" else torch.optim.AdamW
    return kind(parameters, o.learning_rate, o.betas, o.eps, o.weight_decay, **how)


class ReferenceEngine:
    """See :class:`wholebatch.feedforward.engine.Engine`."""

    predicted_rows: ClassVar = 8192  # a sparse table becomes dense block by block

    def __init__(
        self,
        model: FeedForward,
        loss: Loss,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        n_threads: int | None = None,
        peers: Peers | None = None,
        matmul_precision: MatmulPrecision = "highest",
    ) -> None:
        self.model, self.loss, self.optimizer, self.seed = model, loss, optimizer, seed
        self.matmul_precision = matmul_precision
        self.peers = None if peers is None or peers.shards == 1 else peers
        # Over shards the bits are not to depend on what torch chooses here.
        self.n_threads = n_threads or (None if self.peers is None else 1)
        self.step = 0
        self.optimizer_state = make_state(model, optimizer)

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
        with torch_threads(self.n_threads):
            return self._train_epoch(data, order, offsets, learning_rates, progress, counts)

    def _train_epoch(
        self,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        learning_rates: np.ndarray,
        progress: Progress | None,
        counts: np.ndarray | None,
    ) -> EpochResult:
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        stepper = make_optimizer(self.optimizer, self.model)
        self._load_state(stepper)
        parameters = list(self.model.parameters())
        kept_gradients = [parameter.grad for parameter in parameters]
        first_step, total, penalties, done, told = self.step, 0.0, 0.0, 0, time.monotonic()
        try:
            for s, (rows, found) in enumerate(self._steps(data, order, offsets, counts)):
                for group in stepper.param_groups:
                    group["lr"] = float(learning_rates[s])
                    if self.optimizer.eps_hat:
                        group["eps"] = self.optimizer.eps / math.sqrt(1 - self.optimizer.betas[1] ** (self.step + 1))
                for parameter, gradient in zip(parameters, found.gradients, strict=True):
                    parameter.grad = gradient
                if self.optimizer.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, self.optimizer.max_grad_norm)
                stepper.step()
                self.step += 1
                total, done = total + found.loss * rows, done + rows
                penalties += found.penalty * rows
                if progress is not None and time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    progress(done, total / done)
            check_parameters(self.model, len(offsets) - 1)
        except BaseException as error:
            self.model.load_state_dict(before)
            self.step = first_step
            if self.peers is not None and not isinstance(error, NonFiniteLossError):  # that, all ranks raise
                self.peers.fail(error)
            raise
        finally:
            for parameter, kept in zip(parameters, kept_gradients, strict=True):
                parameter.grad = kept
        self._save_state(stepper)
        return EpochResult(total / done, done, len(offsets) - 1, penalties / done)

    def gradients(
        self, data: Data, *, update_running_statistics: bool = False, counts: np.ndarray | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        kept = {} if update_running_statistics else {n: b.clone() for n, b in self.model.named_buffers()}
        try:
            with torch_threads(self.n_threads if self.peers is not None else None):
                _, found = next(self._steps(data, np.arange(len(data)), np.array([0, len(data)]), counts))
        finally:
            self.model.load_state_dict(kept, strict=False)
        names = (name for name, _ in self.model.named_parameters())
        return found.loss, dict(zip(names, found.gradients, strict=True))

    @torch.no_grad()
    def predict(self, x: object) -> np.ndarray:
        rows: int = x.shape[0]  # type: ignore[attr-defined]
        with in_mode(self.model, training=False):
            blocks = [
                self.model(as_dense(x[start : start + self.predicted_rows])).numpy()  # type: ignore[index]
                for start in range(0, max(rows, 1), self.predicted_rows)
            ]
        return np.concatenate(blocks)

    def _steps(
        self, data: Data, order: np.ndarray, offsets: np.ndarray, counts: np.ndarray | None
    ) -> Iterator[tuple[int, Found]]:
        """Mini-batch after mini-batch: its rows, loss and gradients at the parameters as they are then.

        Raises:
            NonFiniteLossError: with the step.
        """
        if self.peers is not None:
            assert counts is not None
            yield from self._sharded_steps(data, order, offsets, counts, self.peers)
            return
        parameters = list(self.model.parameters())
        for s, (start, stop) in enumerate(pairwise(offsets)):
            batch = data.take(order[start:stop])
            loss, penalty = self._loss(batch, in_epoch_step=s + 1)
            gradients = list(torch.autograd.grad(loss, parameters))
            yield len(batch), Found(float(loss.detach()), float(penalty.detach()), gradients)

    def _sharded_steps(
        self, data: Data, order: np.ndarray, offsets: np.ndarray, counts: np.ndarray, peers: Peers
    ) -> Iterator[tuple[int, Found]]:
        batches = Batches(data, order, offsets, counts, self.loss, peers)
        net = Sharded(self.model, self.loss, peers, self.seed, batches.centre, self.matmul_precision)
        for s, batch in enumerate(batches, 1):
            found = net.run(batch, self.step)
            if not math.isfinite(found.loss):
                layer = net.first_layer_not_finite(batch, self.step)
                raise NonFiniteLossError(s, layer, len(self.model.parts()))
            yield batch.rows, found

    def _loss(self, batch: Data, in_epoch_step: int = 1) -> tuple[Tensor, Tensor]:
        """The loss in training mode, and the part of it that is the penalty."""
        assert batch.y is not None
        x, y = as_dense(batch.x), as_tensor(batch.y)
        weight = _weight(batch)
        with in_mode(self.model, training=True):
            _, out = deque(self._forward(x, weight), maxlen=1).pop()
        count = len(batch) if weight is None else float(weight.sum())
        penalty = out.new_zeros(())
        if self.loss.alpha and count:
            squares = torch.stack([part.linear.weight.square().sum() for part in self.model.parts()]).sum()
            penalty = 0.5 * self.loss.alpha * squares / count
        loss = loss_value(self.loss, out, y, weight) + penalty
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(in_epoch_step, self.first_layer_not_finite(batch), len(self.model.parts()))
        return loss, penalty

    def _forward(self, x: Tensor, weight: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """(layer, values) after each module in turn, with this engine's own dropout.

        Where batch norm takes the mean of ``W x`` away, a constant is taken from each input column first: the result is
        the same, and so is ``dW = dZ^T (X - c)``, as dZ then sums to zero; but inputs far from zero no longer cancel in
        rounded sums (at mean 1e4 and std 1 the float32 gradient was off by twice its size, and is now by 1e-5).
        """
        weight = weight if self.loss.weigh_moments else None
        a = self.model.architecture
        centred, layer = a.waits and not a.hidden_bias, 0
        for index, module in enumerate(self.model.layers):
            if isinstance(module, nn.Linear):
                layer += 1
            if centred and index == 0:
                centre = x.mean(0)
                x = x - centre
            if isinstance(module, nn.Linear):
                x = apply_linear(x, module.weight, module.bias, self.matmul_precision)
            elif centred and index == 1:
                x = _batch_norm(module, x, weight)
                if weight is None or weight.any():
                    _shift_running_mean(module, self.model.layers[0], centre)
            elif isinstance(module, nn.Dropout):
                mask = dropout_mask(x.shape[0], x.shape[1], layer - 1, self.step, self.seed, module.p)
                x = x * torch.from_numpy(mask).to(x) / (1 - module.p)
            elif isinstance(module, nn.BatchNorm1d):
                x = _batch_norm(module, x, weight)
            else:
                x = module(x)
            yield layer, x

    @torch.no_grad()
    def first_layer_not_finite(self, batch: Data) -> int:
        """Where a value that is not finite first appears; the output layer where only the loss itself overflows."""
        x = as_dense(batch.x)
        if not bool(torch.isfinite(x).all()):
            return 0
        with in_mode(self.model, training=True):
            layers = [
                layer for layer, values in self._forward(x, _weight(batch)) if not bool(torch.isfinite(values).all())
            ]
        return layers[0] if layers else len(self.model.parts())

    def _load_state(self, stepper: torch.optim.Optimizer) -> None:
        if self.step == 0:
            return
        for name, parameter in self.model.named_parameters():
            state = {s: self.optimizer_state[f"{s}.{name}"].clone() for s in self.optimizer.state_names}
            if self.optimizer.kind != "sgd":
                state["step"] = torch.tensor(float(self.step))
            stepper.state[parameter] = state

    def _save_state(self, stepper: torch.optim.Optimizer) -> None:
        for name, parameter in self.model.named_parameters():
            for state in self.optimizer.state_names:
                self.optimizer_state[f"{state}.{name}"] = stepper.state[parameter][state].clone()


def _batch_norm(norm: Any, x: Tensor, weight: Tensor | None) -> Tensor:
    """``norm(x)`` in training mode, where with weights an example of weight w counts as w examples.

    The running variance is unbiased for weights that count examples: ``M2 / (sum w - 1)``. Weights that sum to fewer
    than the examples (say, to 1) leave as many as there are rows of a weight other than 0, less one.
    """
    if weight is None:
        return norm(x)  # type: ignore[no-any-return]
    total = float(weight.sum())
    shares = weight[:, None] / (total or 1.0)
    mean = (x * shares).sum(0)
    variance = ((x - mean).square() * shares).sum(0)
    if total:
        free = max(total, float((weight != 0).sum()))
        with torch.no_grad():
            norm.num_batches_tracked += 1
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean += share * (mean - norm.running_mean)
            norm.running_var += share * (variance * free / max(free - 1, 1.0) - norm.running_var)
    out: Tensor = (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias
    return out


@torch.no_grad()
def _shift_running_mean(norm: Any, linear: Any, centre: Tensor) -> None:
    """Put into the running mean what the sums of this step lacked."""
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    # .data: autograd holds on to the running mean, though a training step's gradient does not depend on it
    norm.running_mean.data += share * (linear.weight @ centre)


def _weight(batch: Data) -> Tensor | None:
    return None if batch.sample_weight is None else as_tensor(batch.sample_weight)
