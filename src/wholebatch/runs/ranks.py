"""The processes that train one run together, as a run sees them: who writes, what is agreed upon, what is gathered.

Whatever a rank does by itself and may fail at is done inside :meth:`Ranks.agree`: a rank that left in its middle would
let the others wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch.distributed import ProcessGroup

from wholebatch.sharing.alike import find_difference
from wholebatch.sharing.messages import broadcast_bytes, exchange_bytes, gather_bytes, rank_in

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
        result, own = None, None
        try:
            result = work()
        except (ValueError, OSError) as error:
            own = error
        said = gather_bytes(b"" if own is None else _sentence(own).encode() or b"?", self.group, what)
        if own is not None:
            raise own
        for rank, sentence in enumerate(said):
            if sentence:
                raise OtherRankError(f"rank {rank}: {sentence.decode()}")
        return result  # type: ignore[return-value]

    def agree_first(self, work: Callable[[], bytes], what: str) -> bytes:
        """What ``work`` gives on the first rank, on all of them; errors as :meth:`agree`."""
        content = self.agree(work if self.first else lambda: b"", what)
        return broadcast_bytes(content, self.group, what)

    def check_alike(self, facts: Mapping[str, Any], what: str) -> None:
        """Refuse ranks of which these facts differ.

        Raises:
            ValueError: the same on every rank: the first fact that differs, and where.
        """
        told = [json.loads(said) for said in gather_bytes(json.dumps(dict(facts)).encode(), self.group, what)]
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


def _sentence(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
