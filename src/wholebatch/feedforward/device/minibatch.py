"""One mini-batch through the net and back, on any device, without a number read by the host.

The backward pass is written out, stage by stage, and not left to autograd: so a batch norm's exchange with other ranks
is begun before the gradient of the weights above it, and awaited after.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wholebatch.feedforward.device.course import Batch
from wholebatch.feedforward.device.fused import Chain
from wholebatch.feedforward.device.meetings import Meetings
from wholebatch.feedforward.device.norm import Merged, Whole
from wholebatch.feedforward.device.parameters import Parameters
from wholebatch.feedforward.device.plan import SLOPES, plan_pass
from wholebatch.feedforward.device.stages import Dropout, Later, Linear, Module, Stage
from wholebatch.feedforward.losses import loss_sum
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Loss, MatmulPrecision


class Pass:
    """The stages of one net, and its loss.

    Args:
        centre: ``(in_features,)``, what was taken from each column of the table; or None.
        weighted: sample weights weigh batch norm's moments.
        fused: in fused blocks, where these serve.

    Attributes:
        plan: whether they do, and why.
    """

    def __init__(
        self,
        model: FeedForward,
        parameters: Parameters,
        loss: Loss,
        meetings: Meetings,
        seed: int,
        precision: MatmulPrecision,
        *,
        centre: Tensor | None,
        weighted: bool,
        fused: bool = True,
    ) -> None:
        self._model, self._parameters, self._loss, self._meetings = model, parameters, loss, meetings
        flat = parameters.flat
        self._class_weights = None
        if loss.class_weights is not None:
            self._class_weights = torch.tensor(loss.class_weights).to(flat)
        self._precision = precision
        weight = parameters.values["layers.0.weight"]
        self.plan = plan_pass(
            model.architecture, weight, shards=meetings.shards, weighted=weighted, precision=precision
        )
        self._stages: list[tuple[int, Stage]]
        if self.plan.fused and fused:
            slope = SLOPES[type(model.layers[2])]
            self._stages = [(len(model.parts()), Chain(model, parameters, slope, centre))]
        else:
            self._stages = list(self._build(seed, centre, weighted))

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss with the penalty, penalty), of no dimension; the gradients are in ``parameters.total``."""
        parameters = self._parameters
        values = [part.x for part in batch.parts]
        for _, stage in self._stages:
            values = stage.forward(values, batch)
        sums, gradients = self._differentiate_loss(values, batch)
        later: Later = []
        for _, stage in reversed(self._stages):
            gradients = stage.backward(gradients, later)
        for find in later:
            find()
        share = _share(batch.loss_weight, self._loss.scale)
        whole = sums[0]
        if len(batch.rows) > 1:  # in the order of the shards, whoever has them
            begun = self._meetings.gather(parameters.gradients)
            whole = self._meetings.gather(sums[:, None]).wait().sum()
            first, *others = begun.wait()
            parameters.total.copy_(first)
            for other in others:
                parameters.total.add_(other)
        penalty = self._penalise(batch)
        return whole * share + penalty, penalty

    def first_layer_not_finite(self, batch: Batch) -> int:
        """Where a value that is not finite first appears; the output layer where only the loss itself overflows.

        The device is waited for at each stage.
        """
        layers = len(self._model.parts())
        values, first = [part.x for part in batch.parts], layers
        if not all(bool(torch.isfinite(x).all()) for x in values):
            return 0
        for layer, stage in self._stages:  # to the end, for the ranks meet at its layers
            values = stage.forward(values, batch)
            if layer < first and not all(bool(torch.isfinite(x).all()) for x in values):
                first = layer
        return first

    def _build(self, seed: int, centre: Tensor | None, weighted: bool) -> Iterator[tuple[int, Stage]]:
        """(layer from 1, stage), in order; an activation that a batch norm takes along is none of its own."""
        parameters, layer, taken = self._parameters, 0, False
        modules = list(self._model.layers)
        for index, module in enumerate(modules):
            name = f"layers.{index}"
            if isinstance(module, nn.Linear):
                layer += 1
                yield layer, Linear(parameters, name, self._precision, first=index == 0)
            elif isinstance(module, nn.BatchNorm1d):
                alone = not weighted and self._meetings.shards == 1
                following = type(modules[index + 1])
                slope = SLOPES.get(following, 1.0) if not weighted else 1.0
                taken = not weighted and following in SLOPES
                first = ("layers.0.weight", centre) if centre is not None and index == 1 else None
                if alone:
                    yield layer, Whole(parameters, module, name, slope, first)
                else:
                    yield (
                        layer,
                        Merged(parameters, module, name, slope, first, meetings=self._meetings, weighted=weighted),
                    )
            elif isinstance(module, nn.Dropout):
                yield layer, Dropout(layer - 1, module.p, seed)
            elif taken:
                taken = False
            else:
                yield layer, Module(parameters, module, name)

    def _differentiate_loss(self, values: list[Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """``sum_i w_i l_i`` of each own shard, float64, and the gradients of the loss by the net's outputs."""
        share = _share(batch.loss_weight, self._loss.scale).to(values[0].dtype)
        sums, gradients = [], []
        for x, part in zip(values, batch.parts, strict=True):
            with torch.enable_grad():
                out = x.detach().requires_grad_()
                found = loss_sum(self._loss, out, part.y, part.weight, self._class_weights)
            (gradient,) = torch.autograd.grad(found, [out])
            sums.append(found.detach().double())
            gradients.append(gradient * share)
        return torch.stack(sums), gradients

    def _penalise(self, batch: Batch) -> Tensor:
        """The penalty on the weight matrices, of no dimension; its gradient is added."""
        parameters, alpha = self._parameters, self._loss.alpha
        if not alpha:
            return torch.zeros_like(batch.weight)
        share = _share(batch.weight, alpha)
        total = parameters.views(parameters.total)
        squares = []
        for part in self._model.parts():
            name = f"{part.linear_name}.weight"
            value = parameters.values[name]
            squares.append(value.square().sum().double())
            total[name].addcmul_(value, share.to(value.dtype))
        return 0.5 * share * torch.stack(squares).sum()


def _share(weight: Tensor, scale: float) -> Tensor:
    """``scale / weight``, and 0 where nothing counts."""
    return torch.where(weight != 0, scale / torch.where(weight != 0, weight, 1.0), 0.0)
