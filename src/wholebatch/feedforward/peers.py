"""One rank's view of the ranks that train one net together: what the engines do across ranks goes through here."""

from __future__ import annotations

import numpy as np
import torch
from torch.distributed import ProcessGroup

from wholebatch.feedforward.spread import Spread
from wholebatch.sharing import Meeting
from wholebatch.sharing.groups import find_group, sharing_of
from wholebatch.sharing.processes import Processes


class Peers:
    """The ranks of a group, each with the same number of shards; or one process that holds all shards.

    Every rank calls the same methods in the same order. An error of the meeting (see
    :class:`wholebatch.sharing.MeetingError`) tells which rank failed, and where.

    Attributes:
        rank, ranks: this rank, and how many there are; 0 and 1 for a process alone.
        shards: of the whole mini-batch.
        own: those of this rank.
        spread: what was chosen.
    """

    def __init__(self, spread: Spread, group: ProcessGroup | str | None = None) -> None:
        sharing = None if group is None else sharing_of(find_group(group))
        assert sharing is None or isinstance(sharing, Processes)
        self._processes = sharing
        self.rank, self.ranks = (0, 1) if sharing is None else (sharing.rank, sharing.ranks)
        self.spread, self.shards = spread, spread.shards_for(self.ranks)
        each = self.shards // self.ranks
        self.own = range(self.rank * each, (self.rank + 1) * each)

    def gather(self, values: np.ndarray, meeting: Meeting) -> np.ndarray:
        """What all shards have to say: ``(own shards, k)`` float64 to ``(shards, k)``, in the order of the shards."""
        if self._processes is None:
            return values
        own = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        gathered: np.ndarray = self._processes.gather(own, meeting).numpy()
        return gathered.reshape(self.shards, -1)

    def add_up(self, parts: np.ndarray, meeting: Meeting) -> np.ndarray:
        """The sum over all shards, in their order and in the parts' own dtype: ``(own shards, n)`` to ``(n,)``."""
        gathered = self.gather(parts, meeting).astype(parts.dtype)  # exact both ways
        total = gathered[0].copy()
        for part in gathered[1:]:
            total += part
        return total
