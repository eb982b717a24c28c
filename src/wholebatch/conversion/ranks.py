"""Ranks that each do a long piece of work alone, and then exchange numbers: none waits for one that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from wholebatch.sharing import ProcessGroupLike
from wholebatch.sharing.groups import find_group


class Ranks:
    """The processes of a group, or this one alone.

    Args:
        process_group: None, ``"world"`` or a group.

    Raises:
        TypeError, ValueError: something else; no group where torch.distributed is not initialised.
    """

    def __init__(self, process_group: ProcessGroupLike) -> None:
        if not isinstance(process_group, str | ProcessGroup | None):
            raise TypeError(
                f"process_group is of type {type(process_group).__name__}; it must be a group of torch.distributed, "
                "'world' or None"
            )
        self.group = None if process_group is None else find_group(process_group)
        self.alone = self.group is None
        self.device = "cuda" if not self.alone and dist.get_backend(self.group) == "nccl" else "cpu"

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where the block fails on one rank, all raise at its end: that one its own error, the others RuntimeError."""
        try:
            yield
        except Exception:
            self._all_gather(torch.ones(1, dtype=torch.float64))
            raise
        failed = [rank for rank, flag in enumerate(self._all_gather(torch.zeros(1, dtype=torch.float64))) if flag]
        if failed:
            raise RuntimeError(f"rank {', '.join(map(str, failed))} of the group failed: its own error says why")

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of all ranks, which have equally many.

        Raises:
            ValueError: they do not.
        """
        own = torch.tensor(values, dtype=torch.float64)
        sizes = [int(size) for size in self._all_gather(torch.tensor([len(values)], dtype=torch.float64))]
        if len(set(sizes)) > 1:
            raise ValueError(f"the ranks have different models: their batch norms give {sizes} numbers to exchange")
        return [rank.tolist() for rank in self._all_gather(own)]

    def _all_gather(self, own: Tensor) -> list[Tensor]:
        if self.alone:
            return [own]
        own = own.to(self.device)
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(gathered, own, group=self.group)
        return gathered
