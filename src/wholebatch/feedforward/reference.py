"""The reference engine: the same training in plain torch and autograd, in the net's own dtype.

It is the twin that the native engine's tests run against (in float64 it is the oracle), and what people without a
compiler get. It meets far more often than the native engine: torch opens a parallel region per operation.
"""

from __future__ import annotations

import time

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch.feedforward.data import Data
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.feedforward.engine import EpochResult, NonFiniteLossError, Progress
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Loss, Optimizer

PROGRESS_SECONDS = 0.1


def loss_value(loss: Loss, out: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """``scale * sum_i w_i l_i / sum_i w_i``; see :class:`Loss` for ``l_i`` and ``w_i``."""
    class_weights = None if loss.class_weights is None else torch.tensor(loss.class_weights).to(out)
    ones = out.new_ones(out.shape[0]) if weight is None else weight
    if loss.kind == "cross_entropy":
        each = F.cross_entropy(out, y, class_weights, reduction="none", label_smoothing=loss.label_smoothing)
        total = (ones if class_weights is None else ones * class_weights[y]).sum()
        return loss.scale * (each * ones).sum() / total
    if loss.kind == "mse":
        elements = (out - y).square()
    elif loss.kind == "huber":
        elements = F.huber_loss(out, y, reduction="none", delta=loss.delta)
    else:
        smooth = y * (1 - loss.label_smoothing) + loss.label_smoothing / 2
        elements = F.binary_cross_entropy_with_logits(out, smooth, class_weights, reduction="none")
    return loss.scale * (elements.mean(1) * ones).sum() / ones.sum()


def make_optimizer(optimizer: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """torch's own optimizer for these settings."""
    o, parameters = optimizer, list(model.parameters())
    if o.kind == "sgd":
        return torch.optim.SGD(
            parameters, o.learning_rate, o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov
        )
    kind = torch.optim.Adam if o.kind == "adam" else torch.optim.AdamW
    return kind(parameters, o.learning_rate, o.betas, o.eps, o.weight_decay)


def first_layer_not_finite(seen: list[Tensor]) -> int:
    """The number of the first tensor with a value that is not finite (0: the input)."""
    for number, values in enumerate(seen):
        if not bool(torch.isfinite(values).all()):
            return number
    return len(seen) - 1


class ReferenceEngine:
    """See :class:`wholebatch.feedforward.engine.Engine`."""

    def __init__(self, model: FeedForward, loss: Loss, optimizer: Optimizer, *, seed: int = 0) -> None:
        self.model, self.loss, self.optimizer, self.seed = model, loss, optimizer, seed
        self.step = 0
        self.optimizer_state = {
            f"{state}.{name}": torch.zeros_like(parameter)
            for state in optimizer.state_names
            for name, parameter in model.named_parameters()
        }

    def train_epoch(
        self,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        learning_rates: np.ndarray,
        progress: Progress | None = None,
    ) -> EpochResult:
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        stepper = make_optimizer(self.optimizer, self.model)
        self._load_state(stepper)
        first_step, total, done, told = self.step, 0.0, 0, time.monotonic()
        try:
            for s, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
                batch = data.take(order[start:stop])
                for group in stepper.param_groups:
                    group["lr"] = float(learning_rates[s])
                stepper.zero_grad()
                loss = self._loss(batch, in_epoch_step=s + 1)
                loss.backward()
                if self.optimizer.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer.max_grad_norm)
                stepper.step()
                self.step += 1
                total, done = total + float(loss.detach()) * len(batch), done + len(batch)
                if progress is not None and time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    progress(done, total / done)
        except BaseException:
            self.model.load_state_dict(before)
            self.step = first_step
            raise
        self._save_state(stepper)
        self.model.zero_grad(set_to_none=True)
        return EpochResult(total / done, done, len(offsets) - 1)

    def gradients(
        self, data: Data, *, update_running_statistics: bool = False
    ) -> tuple[float, dict[str, Tensor]]:
        kept = None if update_running_statistics else {n: b.clone() for n, b in self.model.named_buffers()}
        loss = self._loss(data)
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        if kept is not None:
            self.model.load_state_dict(kept, strict=False)
        return float(loss.detach()), dict(zip(names, gradients, strict=True))

    @torch.no_grad()
    def predict(self, x: object) -> np.ndarray:
        self.model.eval()
        out: np.ndarray = self.model(_as_tensor(x)).numpy()
        return out

    def _loss(self, batch: Data, in_epoch_step: int = 1) -> Tensor:
        assert batch.y is not None
        x, y = _as_tensor(batch.x), torch.from_numpy(batch.y)
        weight = None if batch.sample_weight is None else torch.from_numpy(batch.sample_weight)
        out, seen = self._forward(x)
        loss = loss_value(self.loss, out, y, weight)
        if self.loss.alpha:
            squares = sum(part.linear.weight.square().sum() for part in self.model.parts())
            loss = loss + 0.5 * self.loss.alpha * squares / len(batch)
        if not bool(torch.isfinite(loss)):
            layers = len(self.model.parts())
            raise NonFiniteLossError(in_epoch_step, first_layer_not_finite([x, *seen]), layers)
        return loss

    def _forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output in training mode with this engine's dropout, and each layer's sums."""
        self.model.train()
        seen: list[Tensor] = []
        hidden = 0
        for module in self.model.layers:
            if isinstance(module, nn.Dropout):
                mask = dropout_mask(x.shape[0], x.shape[1], hidden, self.step, self.seed, module.p)
                x = x * torch.from_numpy(mask).to(x) / (1 - module.p)
                hidden += 1
            else:
                x = module(x)
            if isinstance(module, nn.Linear):
                seen.append(x.detach())
        return x, seen

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


def _as_tensor(x: object) -> Tensor:
    return torch.from_numpy(x.toarray() if scipy.sparse.issparse(x) else x)  # type: ignore[attr-defined]
