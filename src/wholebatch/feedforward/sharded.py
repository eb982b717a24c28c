"""The reference engine's step over shards: each own shard by itself, and what they tell each other.

    forward    a product for each shard             moments of each shard       merged in the order of the shards
               ... to the loss of each shard
    backward   ... to the gradient of xhat          two sums of each shard      added up in the order of the shards
               ... to the gradients of each shard
    end        losses, gradients and moments of all shards, added up or merged in their order

A product over the rows of two shards together would have other bits than the two products, so nothing is ever computed
over the rows of more than one shard. Autograd finds the gradients: each shard has the parameters as leaves of its own,
and a batch norm over shards is one node (:class:`_Normalise`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from wholebatch.feedforward.batches import Batch, moments_of
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.feedforward.losses import loss_sum
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.peers import Peers, add_in_order
from wholebatch.feedforward.products import apply_linear
from wholebatch.feedforward.settings import Loss, MatmulPrecision
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting
from wholebatch.sharing.merging import merge_moments


class Found(NamedTuple):
    """Of a mini-batch: the loss with the penalty, the penalty, and the gradients in the order of the parameters."""

    loss: float
    penalty: float
    gradients: list[Tensor]


class Sharded:
    """The net over the shards of one mini-batch after the other.

    Args:
        model: its parameters are read; its running statistics move in :meth:`run`.
        matmul_precision: of the products with the weights. The shift by the centre is of unrounded weights: it stands
            for what predictions, which are always of the highest precision, add up.
        centre: ``(in_features,)`` float64: taken from each input where batch norm takes the mean away again, so that
            inputs far from zero do not cancel in rounded sums.
    """

    def __init__(
        self,
        model: FeedForward,
        loss: Loss,
        peers: Peers,
        seed: int,
        centre: Tensor,
        matmul_precision: MatmulPrecision = "highest",
    ) -> None:
        self.model, self.loss, self.peers, self.seed = model, loss, peers, seed
        self.matmul_precision = matmul_precision
        a = model.architecture
        self.centre = centre if a.waits and not a.hidden_bias else None
        self.before: dict[int, np.ndarray] = {}  # by module, the moments of all shards in the step before

    def run(self, batch: Batch, step: int) -> Found:
        """Forward and backward, the same numbers on every rank; where the loss is finite running statistics move.

        Args:
            step: of the whole training, from 0.
        """
        parts = _Pass(self, batch, step)
        for _ in parts.forward():
            pass
        sums = [loss_sum(self.loss, x, p.y, p.weight) for x, p in zip(parts.values, batch.parts, strict=True)]
        share = self.loss.scale / batch.loss_weight if batch.loss_weight else 0.0
        leaves = [leaf for own in parts.leaves for leaf in own.values()]
        found = torch.autograd.grad(torch.stack(sums).sum() * share, leaves)
        each = len(parts.leaves[0])
        gradients = [torch.cat([g.reshape(-1) for g in found[i : i + each]]) for i in range(0, len(found), each)]
        loss, gradient, moments = self._add_up(sums, gradients, parts.moments)
        penalty, of_penalty = self._penalty(batch)
        loss = loss * share + penalty
        if np.isfinite(loss):
            self._track(moments, batch)
        parameters = dict(self.model.named_parameters())
        pieces = torch.split(torch.from_numpy(gradient), [p.numel() for p in parameters.values()])
        whole = [
            piece.view(p.shape).to(p.dtype) + of_penalty.get(name, 0)
            for (name, p), piece in zip(parameters.items(), pieces, strict=True)
        ]
        return Found(loss, penalty, whole)

    @torch.no_grad()
    def first_layer_not_finite(self, batch: Batch, step: int) -> int:
        """Where a value that is not finite first appears, in any shard; the output layer where only the loss is not."""
        first = len(self.model.parts())
        if not all(bool(torch.isfinite(part.x).all()) for part in batch.parts):
            first = 0
        parts = _Pass(self, batch, step)
        for layer in parts.forward():  # to the end, for the ranks meet at its layers
            if not all(bool(torch.isfinite(x).all()) for x in parts.values):
                first = min(first, layer)
        return self.peers.least(first, Meeting("step", "not finite"))

    def shift(self, index: int) -> Tensor | float:
        """What the sums before the batch norm at ``index`` lack: ``W c`` float64, or 0."""
        if self.centre is None or index != 1:
            return 0.0
        weight: Tensor = self.model.layers[0].weight  # type: ignore[assignment]
        return weight.detach().double() @ self.centre

    def _add_up(
        self, sums: list[Tensor], gradients: list[Tensor], moments: dict[int, np.ndarray]
    ) -> tuple[float, np.ndarray, dict[int, np.ndarray]]:
        """Loss and gradient of all shards, added up, and their moments; one meeting."""
        columns = [np.array([[float(value.detach())] for value in sums]), torch.stack(gradients).double().numpy()]
        columns += moments.values()
        told = self.peers.gather(np.concatenate(columns, axis=1), Meeting("step", "end"))
        cuts = np.cumsum([0, *(column.shape[1] for column in columns)])
        loss, gradient, *of_all = (told[:, begin:end] for begin, end in pairwise(cuts))
        return float(add_in_order(loss)[0]), add_in_order(gradient), dict(zip(moments, of_all, strict=True))

    def _penalty(self, batch: Batch) -> tuple[float, dict[str, Tensor]]:
        """The penalty on the weights, and its gradient by the parameters' names."""
        if not (self.loss.alpha and batch.weight):
            return 0.0, {}
        weights = {f"{part.linear_name}.weight": part.linear.weight.detach() for part in self.model.parts()}
        squares = sum(float(w.double().square().sum()) for w in weights.values())
        share = self.loss.alpha / batch.weight
        return 0.5 * share * squares, {name: share * w for name, w in weights.items()}

    @torch.no_grad()
    def _track(self, moments: dict[int, np.ndarray], batch: Batch) -> None:
        """Move the running statistics by the moments of all shards, and keep these for the next step."""
        for index, rows in moments.items():
            norm: Any = self.model.layers[index]
            self.before[index] = _moved(rows, self.shift(index))
            whole = _merge(self.before[index])
            if not whole.count:
                continue
            free = max(whole.count, batch.weighed) if self.loss.weigh_moments else whole.count
            norm.num_batches_tracked += 1
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            variance = whole.m2 / whole.count * (free / max(free - 1, 1.0))
            norm.running_mean += (share * (whole.mean - norm.running_mean)).to(norm.running_mean)
            norm.running_var += (share * (variance - norm.running_var)).to(norm.running_var)


class _Pass:
    """One mini-batch on its way through the net.

    Attributes:
        leaves: of each own shard, the parameters by name.
        values: of each own shard, the values where the pass stands.
        moments: ``(own shards, 1 + 2 C)`` by module: count, mean and M2 that each own shard had there.
    """

    def __init__(self, net: Sharded, batch: Batch, step: int) -> None:
        self._net, self._batch, self._step = net, batch, step
        self.leaves = [
            {name: p.detach().requires_grad_() for name, p in net.model.named_parameters()} for _ in batch.parts
        ]
        self.values = [part.x for part in batch.parts]
        self.moments: dict[int, np.ndarray] = {}
        self._weights = [part.weight if net.loss.weigh_moments else None for part in batch.parts]

    def forward(self) -> Iterator[int]:
        """The layer (from 1) after each module in turn, when ``values`` are what it gave."""
        if self._net.centre is not None:
            self.values = [x - self._net.centre.to(x) for x in self.values]
        layer = 0
        for index, module in enumerate(self._net.model.layers):
            layer += isinstance(module, nn.Linear)
            if isinstance(module, nn.Linear):
                self._multiply(f"layers.{index}")
            elif isinstance(module, nn.BatchNorm1d):
                self._normalise(index, module)
            elif isinstance(module, nn.Dropout):
                self._drop(layer - 1, module.p)
            else:
                names = [name for name, _ in module.named_parameters()]
                own = [{name: leaf[f"layers.{index}.{name}"] for name in names} for leaf in self.leaves]
                self.values = [functional_call(module, of, (x,)) for of, x in zip(own, self.values, strict=True)]
            yield layer

    def _multiply(self, name: str) -> None:
        precision = self._net.matmul_precision
        self.values = [
            apply_linear(x, leaf[f"{name}.weight"], leaf.get(f"{name}.bias"), precision)
            for x, leaf in zip(self.values, self.leaves, strict=True)
        ]

    def _normalise(self, index: int, norm: nn.BatchNorm1d) -> None:
        peers, name = self._net.peers, f"layers.{index}"
        own = np.stack([moments_of(z, w) for z, w in zip(self.values, self._weights, strict=True)])
        self.moments[index] = own
        shared = peers.gather_near(own, Meeting(name, "forward"))
        if peers.spread.sync == "late" and index in self._net.before:
            shared = _moved(self._net.before[index], -self._net.shift(index))
            shared[peers.own.start : peers.own.stop] = own
        whole = _Whole(peers, name, _merge(shared), norm.eps, self._weights)
        shifts: list[Tensor] = []
        if peers.spread.sync == "late" and index == 1 and self._net.centre is not None:
            shifts = [leaf["layers.0.weight"] @ self._net.centre.to(norm.weight.dtype) for leaf in self.leaves]
        normalised = _Normalise.apply(whole, *self.values, *shifts)  # type: ignore[no-untyped-call]
        self.values = [
            x * leaf[f"{name}.weight"] + leaf[f"{name}.bias"] for x, leaf in zip(normalised, self.leaves, strict=True)
        ]

    def _drop(self, layer: int, p: float) -> None:
        net = self._net
        masks = [
            dropout_mask(x.shape[0], x.shape[1], layer, self._step, net.seed, p, part.first)
            for x, part in zip(self.values, self._batch.parts, strict=True)
        ]
        self.values = [x * torch.from_numpy(mask).to(x) / (1 - p) for x, mask in zip(self.values, masks, strict=True)]


class _Whole(NamedTuple):
    """What a batch norm's node knows: with whom it meets and where, the moments it normalises by, and row weights."""

    peers: Peers
    layer: str
    moments: Moments
    eps: float
    weights: list[Tensor | None]


class _Normalise(torch.autograd.Function):
    """``xhat = (z - mean) * rstd`` of each own shard, where mean and rstd are functions of the rows of several.

    Backward, with ``g = dL/dxhat``, the weight w of a row (1 without weights) and their sum m over all moments used::

        dz = rstd * (g - w / m * (sum(g) + xhat * sum(g * xhat)))

    The sums are over the shards whose moments depend on this mini-batch here: those of ``Peers.near``.

    Args:
        zs: of each own shard, ``(rows, C)``.
        shifts: of each own shard, ``(C,)``: what was taken from its z, and from the moments; or nothing. It changes no
            value, but its gradient is the sum of dz, which is 0 unless some of the moments are constants.
    """

    @staticmethod
    def forward(ctx: Any, whole: _Whole, *tensors: Tensor) -> tuple[Tensor, ...]:
        zs = tensors[: len(whole.weights)]
        ctx.shifted = len(tensors) > len(zs)
        rstd = whole.moments.rstd(whole.eps)
        normalised = [((z.double() - whole.moments.mean) * rstd).to(z.dtype) for z in zs]
        ctx.whole, ctx.rstd = whole, rstd
        ctx.save_for_backward(*normalised)
        return tuple(normalised)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        whole: _Whole = ctx.whole
        normalised = [x.double() for x in ctx.saved_tensors]
        own = [torch.cat([g.double().sum(0), (g.double() * x).sum(0)]) for g, x in zip(gs, normalised, strict=True)]
        told = whole.peers.gather_near(torch.stack(own).numpy(), Meeting(whole.layer, "backward"))
        sum_g, sum_gx = torch.from_numpy(add_in_order(told)).chunk(2)
        each = 1 / whole.moments.count if whole.moments.count else 0.0
        shares = [each if weight is None else each * weight.double()[:, None] for weight in whole.weights]
        dzs = [
            ctx.rstd * (g.double() - share * (sum_g + x * sum_gx))
            for g, x, share in zip(gs, normalised, shares, strict=True)
        ]
        found = [*dzs, *(dz.sum(0) for dz in dzs)] if ctx.shifted else dzs
        return None, *(gradient.to(gs[0].dtype) for gradient in found)


def _merge(rows: np.ndarray) -> Moments:
    """``(shards, 1 + 2 C)`` float64 merged in order."""
    return merge_moments(torch.from_numpy(rows), torch.zeros((rows.shape[1] - 1) // 2, dtype=torch.float64))


def _moved(rows: np.ndarray, shift: Tensor | float) -> np.ndarray:
    """The same moments of values that are larger by ``shift``; shards without rows stay zeros."""
    moved = rows.copy()
    channels = (rows.shape[1] - 1) // 2
    moved[:, 1 : 1 + channels] += np.asarray(shift) * (rows[:, :1] != 0)
    return moved
