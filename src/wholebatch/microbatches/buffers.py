"""Buffers as they were before the parts began, for when one of them fails."""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm import move_running
from wholebatch.parts import Arrival


class Buffers:
    """Running statistics and counters that the parts have moved."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def note(self, *buffers: Tensor) -> None:
        """Remember what they hold, the first time that they are named."""
        for buffer in buffers:
            if id(buffer) not in self._before:
                self._before[id(buffer)] = buffer, buffer.detach().clone()

    def move(self, arrival: Arrival) -> None:
        """Move a batch norm's running statistics by those of the whole mini-batch.

        Raises:
            ValueError: the mini-batch has one value per channel.
        """
        moments = arrival.call.moments
        if moments is None or moments.count == 0:
            return
        moments.check(arrival.shape)
        mean, var = arrival.running_mean, arrival.running_var
        self.note(*(buffer for buffer in (mean, var) if buffer is not None))
        move_running(mean, var, moments, arrival.momentum)

    def undo(self) -> None:
        """Bring back what was."""
        with torch.no_grad():
            for buffer, before in self._before.values():
                buffer.copy_(before)
