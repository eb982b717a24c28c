"""An epoch as its steps read it: on the device, at addresses that stay, with a place that moves on by itself.

Nothing that differs from step to step is a number of the host: so a captured step is replayed, one after the other,
without a word in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wholebatch.feedforward.device.table import Table

INDEX, CURSOR, STEP = 0, 1, 2


@dataclass(frozen=True)
class Part:
    """The rows of a mini-batch that one own shard has; there may be none.

    Attributes:
        x: ``(rows, in_features)``.
        y: targets.
        weight: ``(rows,)`` or None.
        first: the place of its first row in the whole mini-batch, int64 of no dimension.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None
    first: Tensor


@dataclass(frozen=True)
class Batch:
    """A mini-batch: the parts of the own shards, and numbers of the whole, on the device.

    Attributes:
        parts: of the own shards, in their order.
        rows: of each of all shards.
        loss_weight: what the loss is divided by.
        weight: the sum of the sample weights; the rows, where they are equal.
        weighed: how many rows have a weight other than 0.
        step: of the whole training, from 0, int64.
    """

    parts: list[Part]
    rows: tuple[int, ...]
    loss_weight: Tensor
    weight: Tensor
    weighed: Tensor
    step: Tensor


class Course:
    """The steps of an epoch.

    Args:
        own: this rank's shards among all.

    Attributes:
        losses, penalties: ``(steps,)`` float64, written by each step.
        rates: ``(steps,)`` float64.
    """

    def __init__(self, device: torch.device, own: range) -> None:
        self._device, self._own = device, own
        self._whole = {name: torch.empty(0, device=device) for name in ("order", "totals", "firsts", "rates", "found")}
        self.place = torch.zeros(3, dtype=torch.int64, device=device)

    def lay(self, order: np.ndarray, counts: np.ndarray, totals: np.ndarray, rates: np.ndarray, step: int) -> bool:
        """Take an epoch's; True: some lie elsewhere than before.

        Args:
            order: of the own rows, step after step.
            counts: ``(steps, shards)``.
            totals: ``(steps, 3)``: loss weight, weight, weighed rows of each whole mini-batch.
            rates: ``(steps,)``.
            step: of the whole training, before this epoch.
        """
        firsts = np.cumsum(np.insert(counts, 0, 0, axis=1), axis=1)[:, self._own.start : self._own.stop]
        given = {
            "order": np.ascontiguousarray(order, dtype=np.int64),
            "totals": totals,
            "firsts": np.ascontiguousarray(firsts, dtype=np.int64),
            "rates": np.ascontiguousarray(rates, dtype=np.float64),
            "found": np.zeros((2, len(counts))),
        }
        moved = False
        for name, values in given.items():
            new, old = torch.from_numpy(values), self._whole[name]
            if old.shape == new.shape and old.dtype == new.dtype:
                old.copy_(new)
            else:
                # A copy, also on the CPU: what the steps write to is not the caller's.
                self._whole[name], moved = torch.empty_like(new, device=self._device).copy_(new), True
        self.place.copy_(torch.tensor([0, 0, step]))
        return moved

    @property
    def losses(self) -> Tensor:
        return self._whole["found"][0]

    @property
    def penalties(self) -> Tensor:
        return self._whole["found"][1]

    def batch(self, table: Table, rows: tuple[int, ...]) -> Batch:
        """The mini-batch where the course stands, which has so many rows of each shard."""
        index, cursor = self.place[INDEX : INDEX + 1], self.place[CURSOR : CURSOR + 1]
        firsts = self._whole["firsts"].index_select(0, index)[0]
        totals = self._whole["totals"].index_select(0, index)[0]
        parts, begin = [], 0
        for number, shard in enumerate(self._own):
            places = torch.arange(begin, begin + rows[shard], device=self._device) + cursor
            taken = self._whole["order"].index_select(0, places)
            weight = None if table.weight is None else table.weight.index_select(0, taken)
            parts.append(Part(table.x.index_select(0, taken), table.y.index_select(0, taken), weight, firsts[number]))
            begin += rows[shard]
        return Batch(parts, rows, totals[0], totals[1], totals[2], self.place[STEP])

    def rate(self) -> Tensor:
        """The learning rate where the course stands."""
        return self._whole["rates"].index_select(0, self.place[INDEX : INDEX + 1])[0]

    def move_on(self, loss: Tensor, penalty: Tensor, rows: int) -> None:
        """Keep what a step found, and go to the next; ``rows`` were this rank's."""
        index = self.place[INDEX : INDEX + 1]
        found = torch.stack([loss, penalty]).double()[:, None]
        self._whole["found"].index_copy_(1, index, found)
        self.place[INDEX].add_(1)
        self.place[CURSOR].add_(rows)
        self.place[STEP].add_(1)
