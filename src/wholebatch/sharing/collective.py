"""Ranks with tensors on GPUs meet by their own group's all_gather: one packed vector, on the device, in stream order.

There is no header and no slice: NCCL's own timeout tells of a rank that does not come.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from wholebatch.sharing.diagnosis import Doing


def gather_into(gathered: Tensor, own: Tensor, group: ProcessGroup, *, async_op: bool = False) -> Any:
    """What all ranks have, one behind the other, into ``gathered``; the work, where it is not waited for."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13
    return gather(gathered, own, group=group, async_op=async_op)


class Collective:
    """A :class:`wholebatch.sharing.transport.Transport` for whatever device the group serves."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group, self._ranks = group, dist.get_world_size(group)

    def exchange(self, header: bytes, count: float, vectors: tuple[Tensor, ...]) -> Tensor:
        counts = torch.full((1,), count, dtype=torch.float64, device=vectors[0].device)
        packed = torch.cat([counts, *(vector.reshape(-1).double() for vector in vectors)])
        gathered = packed.new_empty(self._ranks * len(packed))
        gather_into(gathered, packed, self._group)
        return gathered.view(self._ranks, -1)

    def stand_by(self) -> bool:
        raise ValueError(
            "a rank that ran out of data cannot stand by on a GPU: it does not learn the sizes of others' meetings; "
            "give every rank the same number of batches (DistributedSampler pads them, drop_last cuts them)"
        )

    def leave(self, doing: Doing, text: str) -> None:
        pass
