"""How a mini-batch is spread over the ranks of a process group: what a person chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Sync = Literal["all", "group", "none", "late"]


@dataclass(frozen=True)
class Spread:
    """Every rank of a process group holds rows of its own, and every mini-batch has rows of all ranks.

    Args:
        shards: the mini-batch is cut into so many parts, a multiple of the number of ranks; each rank owns
            ``shards / ranks`` whole ones. Whatever is summed over the mini-batch is summed over each shard, and then
            over the shards in order, so that any number of ranks that divides ``shards``, and one process alone, end
            with the same bits. None: as many as ranks.
        sync: whose rows batch norm's statistics are of, in training. ``all``: the whole mini-batch, exactly.
            ``group``: the rows of neighbouring ranks, ``group_size`` of them. ``none``: each rank's own rows.
            ``late``: the own rows of this step, and the other ranks' moments of the step before: nobody waits at a
            layer. The gradients of the parameters are those of the whole mini-batch in every case.
        group_size: with ``group``: how many ranks; None: those of one host.
        overlap: ranks work while an exchange is under way. False waits for each at once, to measure what that saves.

    Raises:
        ValueError: an unknown choice, or a number below 1.
    """

    shards: int | None = None
    sync: Sync = "all"
    group_size: int | None = None
    overlap: bool = True

    def __post_init__(self) -> None:
        if self.sync not in get_args(Sync):
            raise ValueError(f"sync is {self.sync!r}; choose one of {', '.join(map(repr, get_args(Sync)))}")
        for name in ("shards", "group_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1, or None")
        if self.group_size is not None and self.sync != "group":
            raise ValueError(
                f"group_size is {self.group_size}, but sync is {self.sync!r}; groups are for sync='group' alone"
            )

    def shards_for(self, ranks: int) -> int:
        """How many shards so many ranks hold together.

        Raises:
            ValueError: they are not a multiple of the ranks.
        """
        shards = self.shards or ranks
        if shards % ranks:
            raise ValueError(
                f"{shards} shards cannot be dealt to {ranks} ranks in equal numbers; choose a multiple of {ranks} "
                "shards, or a number of ranks that divides them"
            )
        return shards
