"""What the ranks of a profile tell each other: by notices in a store, not by collectives.

A collective would need a group of the person's, a device that it serves, and every rank at the same place; a notice
needs the store alone, which torchrun keeps for its ranks, and which every process group has.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from wholebatch.cost.profile.norms import Norm
from wholebatch.sharing.board import Board

PATIENCE = 600.0  # seconds: ranks whose steps do not wait for each other may differ by the whole measurement
_SLICE = 0.5
_numbers = itertools.count()  # several profiles of one process; all ranks make them in the same order


class Crew:
    """The ranks, or this process alone.

    Attributes:
        rank, ranks: this one, and how many.
    """

    def __init__(self, board: Board | None = None, rank: int = 0, ranks: int = 1) -> None:
        self.rank, self.ranks, self._board = rank, ranks, board
        self._name = f"cost {next(_numbers)}" if board else ""

    @classmethod
    def find(cls) -> Crew:
        """All ranks: of the default process group where there is one, or else those that torchrun started."""
        if dist.is_available() and dist.is_initialized():
            return cls.of_group()
        ranks = os.environ.get("WORLD_SIZE", "1")
        if not ranks.isdecimal() or int(ranks) < 2:
            return cls()
        try:
            store, rank, size = next(iter(rendezvous("env://")))
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"WORLD_SIZE is {ranks}, but the other ranks cannot be found: {' '.join(str(error).split())}; start "
                "all ranks with torchrun, or unset WORLD_SIZE"
            ) from error
        return cls(Board(store), rank, size)

    @classmethod
    def of_group(cls) -> Crew:
        """The ranks of the default process group."""
        ranks = dist.get_world_size()
        if ranks == 1:
            return cls()
        return cls(Board(dist.distributed_c10d._get_default_store()), dist.get_rank(), ranks)

    def tell(self, kind: str, value: Any) -> None:
        """Leave a notice for whoever gathers."""
        if self._board is not None:
            self._call(self._board.put, f"{self._name}/{kind}", self.rank, value)

    def fail(self, error: Exception) -> None:
        """Let those who wait for this rank's notices know that none will come."""
        if self._board is not None:
            with contextlib.suppress(ValueError):  # there may be nobody left to tell
                self._call(self._board.put, f"{self._name}/failed", self.rank, str(error))

    def gather(self, kind: str, own: Any) -> list[Any]:
        """The notices of all ranks, in rank order.

        Raises:
            ValueError: a rank failed, or did not leave one in time.
        """
        if self._board is None:
            return [own]
        name, missing, since = f"{self._name}/{kind}", list(range(self.ranks)), time.monotonic()
        while missing:
            if self._call(self._board.wait, name, missing, _SLICE):
                break
            missing = [rank for rank in missing if not self._call(self._board.wait, name, [rank], 0.001)]
            for rank in missing:
                if (text := self._call(self._board.get, f"{self._name}/failed", rank)) is not None:
                    raise ValueError(f"rank {rank} failed: {text}")
            if missing and time.monotonic() - since > PATIENCE:
                who = ", ".join(map(str, missing))
                raise ValueError(
                    f"rank {who} left no {kind} within {PATIENCE:.0f} s: it failed, or it does not record; "
                    "look at what it says, and record on every rank"
                )
        return [self._call(self._board.get, name, rank) for rank in range(self.ranks)]

    def share(self, kind: str, own: Any) -> list[Any]:
        """Tell, and gather."""
        self.tell(kind, own)
        return self.gather(kind, own)

    def compare(self, norms: Sequence[Norm]) -> None:
        """Whether all ranks have the same layers.

        Raises:
            ValueError: they do not, and the first one that differs; on all ranks.
        """
        layers = self.share("layers", [[norm.name, str(norm)] for norm in norms])
        first = layers[0]
        for rank, other in enumerate(layers):
            if other == first:
                continue
            both = list(zip(first, other, strict=False))
            place = next((i for i, (a, b) in enumerate(both) if a != b), len(both))
            told = [f"{each[place][0]}, {each[place][1]}," if place < len(each) else "none" for each in (first, other)]
            raise ValueError(
                f"the ranks have different models: normalisation layer {place + 1} is {told[0]} on rank 0 and "
                f"{told[1].rstrip(',')} on rank {rank}; build the same model on every rank"
            )

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise ValueError(
                "the ranks' store is gone, and with it what they tell each other: a rank failed; look at what it says"
            ) from error
