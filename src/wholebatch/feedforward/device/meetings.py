"""How the shards of a mini-batch meet on a device: one packed all_gather of the ranks' own group, begun and awaited.

Every rank gets what all shards have, in their order, and computes the same from it: so all ranks have the same bits,
as many as there are. The collectives are the group's own (NCCL on GPUs, which can be captured in a graph), not the
host's meetings: a rank that does not come is told of by the group's timeout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from wholebatch.feedforward.peers import Peers
from wholebatch.sharing import MeetingError
from wholebatch.sharing.collective import gather_into


class Begun(Protocol):
    """An exchange that is under way."""

    def wait(self) -> Tensor:
        """``(shards, k)``; on a GPU it is the stream that waits, not the host."""
        ...


class _There:
    """Nobody has to be waited for."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def wait(self) -> Tensor:
        return self._values


class _Gathering:
    def __init__(self, own: Tensor, group: ProcessGroup, ranks: int, *, overlap: bool) -> None:
        self._own = own.contiguous()  # kept until it was sent
        self._all = own.new_empty((ranks * own.shape[0], *own.shape[1:]))
        with _told():
            self._work: Any = gather_into(self._all, self._own, group, async_op=True)
            if not overlap:
                self._work.wait()

    def wait(self) -> Tensor:
        with _told():
            self._work.wait()
        return self._all


@contextmanager
def _told() -> Iterator[None]:
    """The collective's error, as that of a meeting."""
    try:
        yield
    except RuntimeError as error:
        raise MeetingError(
            "the ranks could not exchange what they have on their devices; a rank that ended or was cut off is the "
            f"usual cause, and its own output says why: {' '.join(str(error).split())}",
            "an exchange on devices failed",
        ) from error


class Meetings:
    """The exchanges of one engine.

    Args:
        peers: who else holds shards; None: one shard is the whole mini-batch.

    Attributes:
        own, near, shards: as in :class:`Peers`.

    Raises:
        ValueError: the group has no backend for the device, or a way of sharing statistics that a device does not have.
    """

    def __init__(self, peers: Peers | None, device: torch.device) -> None:
        self.own = self.near = range(1) if peers is None else peers.own
        self.shards = 1 if peers is None else peers.shards
        self._group: ProcessGroup | None = None
        self._ranks, self._overlap = 1, True
        if peers is None:
            return
        self.near, self._overlap = peers.near, peers.spread.overlap
        if peers.group is None:
            return
        if peers.spread.sync not in ("all", "none"):
            raise ValueError(
                f"sync is {peers.spread.sync!r}; ranks whose nets are trained on a device share statistics with "
                "'all' or 'none': choose one of these, or train on the CPU"
            )
        _check_backend(peers.group, device)
        self._group, self._ranks = peers.group, peers.ranks

    def gather(self, own: Tensor) -> Begun:
        """``(own shards, k)`` to ``(shards, k)``."""
        if self._group is None:
            return _There(own)
        return _Gathering(own, self._group, self._ranks, overlap=self._overlap)

    def gather_near(self, own: Tensor) -> Begun:
        """``(own shards, k)`` to ``(near shards, k)``."""
        return self.gather(own) if len(self.near) > len(self.own) else _There(own)


def _check_backend(group: ProcessGroup, device: torch.device) -> None:
    try:
        group._get_backend(device)
    except RuntimeError as error:
        raise ValueError(
            f"the process group has no backend for {device.type}, where the nets are trained; initialise it with one: "
            "torch.distributed.init_process_group('cpu:gloo,cuda:nccl')"
        ) from error
