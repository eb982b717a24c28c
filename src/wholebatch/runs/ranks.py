"""The processes that train one run together, as a run sees them: who writes, what is agreed upon, what is gathered.

Whatever a rank does by itself and may fail at is done inside :meth:`Ranks.agree`: a rank that left in its middle would
let the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch.distributed import ProcessGroup

from wholebatch.sharing.alike import find_difference
from wholebatch.sharing.attempts import attempt
from wholebatch.sharing.messages import broadcast_bytes, exchange_bytes, rank_in, tell

Result = TypeVar("Result")


class OtherRankError(ValueError):
    """What another rank found wrong, told on this one."""


@dataclass(frozen=True)
class Ranks:
    """Every rank calls the same methods in the same order.

    Attributes:
        group: the process group, or ``"world"``; None: this process alone.
        launch: which launch started the ranks, the same after a restart; empty: none that restarts.
    """

    group: ProcessGroup | str | None = None
    launch: str = ""

    @property
    def rank(self) -> int:
        return rank_in(self.group)[0]

    @property
    def count(self) -> int:
        return rank_in(self.group)[1]

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes the run folder and talks to the person."""
        return self.rank == 0

    def agree(self, work: Callable[[], Result], what: str) -> Result:
        """What ``work`` gives, once all ranks have come through theirs.

        Raises:
            ValueError, OSError: this rank's own mistake.
            OtherRankError: another rank's.
            MeetingError: a rank does not come, and a table of where they are.
        """
        tried = attempt(work, (ValueError, OSError), self.group, what)
        if tried.own is not None:
            raise tried.own
        if tried.first is not None:
            rank, failure = tried.first
            raise OtherRankError(f"rank {rank}: {' '.join(failure.text.split()) or '?'}")
        return tried.result

    def agree_first(self, work: Callable[[], bytes], what: str) -> bytes:
        """What ``work`` gives on the first rank, on all of them; errors as :meth:`agree`."""
        content = self.agree(work if self.first else lambda: b"", what)
        return broadcast_bytes(content, self.group, what)

    def check_alike(self, facts: Mapping[str, Any], what: str) -> None:
        """Refuse ranks of which these facts differ.

        Raises:
            ValueError: the same on every rank: the first fact that differs, and where.
        """
        told = tell(dict(facts), self.group, what)
        if (found := find_difference(told)) is not None:
            name, rank = found
            own = told[rank].get(name)
            raise ValueError(
                f"the ranks cannot train together: rank {rank} has {name} {own}, rank 0 has {told[0].get(name)}"
            )

    def gather(self, rows: np.ndarray, what: str) -> np.ndarray:
        """All ranks' rows, one rank's behind the other's, on the first rank; nothing, ``(0, ...)``, on the others."""
        if self.count == 1:
            return rows
        rows = np.ascontiguousarray(rows)
        parts = exchange_bytes([rows.tobytes(), *[b""] * (self.count - 1)], self.group, what)
        return np.concatenate([np.frombuffer(part, rows.dtype).reshape(-1, *rows.shape[1:]) for part in parts])
