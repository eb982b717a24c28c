"""Ranks that note when they came to each meeting and when they left it."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from wholebatch.cost.plan.record import Exchange
from wholebatch.sharing.mailbox import SharedMemory
from wholebatch.sharing.processes import Processes


class Clocked(Processes):
    """The ranks of a group, with a clock at their meetings. All layers are to use this one object.

    Attributes:
        marks: seconds at which this rank came and left, alternating; whoever reads them clears them.
        alone: no rank is met: this one is given back what it brought. So its compute is measured by itself.
    """

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__(group)
        self.marks: list[float] = []
        self.alone = False

    @property
    def way(self) -> Exchange:
        """How the ranks meet; known after their first meeting."""
        return "shared memory" if isinstance(self._on_host, SharedMemory) else "allgather"

    def _exchange(self, header: bytes, count: float, vectors: tuple[Tensor, ...]) -> Tensor:
        self.marks.append(perf_counter())
        if self.alone:
            own = torch.tensor([count], dtype=torch.float64)
            gathered = torch.cat([own, *(vector.reshape(-1).double() for vector in vectors)]).unsqueeze(0)
        else:
            gathered = super()._exchange(header, count, vectors)
        self.marks.append(perf_counter())
        return gathered
