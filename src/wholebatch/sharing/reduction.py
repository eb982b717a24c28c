"""Sums over the shards of ranks that share no memory, in the order of the shards, while the ranks work on.

Every rank sums one slice of the numbers: it gets that slice of each shard's part (all_to_all), adds the parts up one
after the other, and gives the sum to all (all_gather). Which rank adds changes no bit, nor does the number of ranks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import Work

from wholebatch.sharing.connection import wait
from wholebatch.sharing.processes import Processes


@dataclass
class _Sum:
    """A sum under way: of elements ``[begin, end)``."""

    begin: int
    end: int
    work: Work
    kept: Tensor  # what is being sent
    slices: Tensor  # (shards, slice)
    whole: Tensor | None = None  # (ranks * slice,), once this rank's slice is given to all


class Reduction:
    """``sums[begin:end]`` of ``own`` ``(own shards, n)`` of all ranks; every rank asks for the same in the same order.

    Raises MeetingError in place of waiting for a rank that will not come.
    """

    def __init__(self, processes: Processes, own: Tensor, sums: Tensor) -> None:
        self._own, self._sums, self._processes = own, sums, processes
        self._group = processes.connect()
        self._pending: deque[_Sum] = deque()

    def send(self, begin: int, end: int) -> None:
        """The own parts of these elements are complete: begin to sum them up. They may change when this returns."""
        for pending in self._pending:
            self._give(pending)
        ranks, count = self._processes.ranks, end - begin
        each = -(-count // ranks)
        sent = self._own.new_zeros((ranks, len(self._own), each))
        for rank in range(ranks):
            piece = self._own[:, begin + rank * each : min(begin + (rank + 1) * each, end)]
            sent[rank, :, : piece.shape[1]] = piece
        slices = torch.empty_like(sent)
        work = self._group.alltoall_base(slices.view(-1), sent.view(-1), [], [])  # type: ignore[attr-defined]
        self._pending.append(_Sum(begin, end, work, sent, slices.view(-1, each)))

    def finish(self) -> None:
        """Wait for the sum that was begun first, which is in ``sums`` then."""
        pending = self._pending.popleft()
        self._give(pending)
        assert pending.whole is not None
        wait(pending.work, self._processes.lookout)
        self._sums[pending.begin : pending.end] = pending.whole[: pending.end - pending.begin]

    def clear(self) -> None:
        """End what was begun and not waited for, as after a loss that is not finite."""
        while self._pending:
            self.finish()

    def _give(self, pending: _Sum) -> None:
        """Add up this rank's slice, and give it to all."""
        if pending.whole is not None:
            return
        wait(pending.work, self._processes.lookout)
        total = pending.slices[0].clone()
        for part in pending.slices[1:]:
            total += part
        pending.whole = total.new_empty(self._processes.ranks * len(total))
        pending.kept = total
        pending.work = self._group._allgather_base(pending.whole, total)  # type: ignore[attr-defined]
