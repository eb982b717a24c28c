"""One rank's view of the ranks that train one net together: what the engines do across ranks goes through here."""

from __future__ import annotations

from socket import gethostname
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from wholebatch.feedforward.spread import Spread
from wholebatch.sharing import Meeting
from wholebatch.sharing.groups import check_process_group, find_group, sharing_of
from wholebatch.sharing.host import Process
from wholebatch.sharing.messages import broadcast_bytes, exchange_bytes, gather_bytes
from wholebatch.sharing.processes import Processes

# Groups of neighbours, by the group that they are cut from: making one takes a while, and torch keeps it for ever.
_neighbours: WeakKeyDictionary[ProcessGroup, dict[tuple[int, ...], ProcessGroup]] = WeakKeyDictionary()


class Peers:
    """The ranks of a group, each with the same number of shards; or one process that holds all shards.

    Every rank calls the same methods in the same order. An error of the meeting (see
    :class:`wholebatch.sharing.MeetingError`) tells which rank failed, and where.

    Args:
        spread: what a person chose; the same on all ranks.
        group: a process group, ``"world"`` for the default one, or None: this process holds all shards.

    Attributes:
        rank, ranks: this rank, and how many there are; 0 and 1 for a process alone.
        shards: of the whole mini-batch.
        own: those of this rank.
        near: those whose rows this rank's batch norms are of, in training: all, the own, or (``sync="group"``) those
            of the ranks nearby. Under ``sync="late"`` the own: the others' moments come a step late.
        on_host: how many of the ranks are on this host.
        spread: what was chosen.
        group: the process group; None: this process alone.
        processes, nearby: how all ranks meet, and those of ``near``; None: this process alone.

    Raises:
        ValueError: the shards are no multiple of the ranks, the group size does not divide them, there is no such
            group, or this process is not in it.
    """

    def __init__(self, spread: Spread, group: ProcessGroup | str | None = None) -> None:
        found = None if group is None else find_group(group)
        sharing = sharing_of(found)
        assert sharing is None or isinstance(sharing, Processes)
        self.processes = sharing
        self.group = None if sharing is None else found
        self.rank, self.ranks = (0, 1) if sharing is None else (sharing.rank, sharing.ranks)
        self.spread, self.shards = spread, spread.shards_for(self.ranks)
        self.own = self._shards_of(range(self.rank, self.rank + 1))
        self.near, self.nearby = self.own, self.processes
        hosts = self.tell((Process.own().host or gethostname()).encode(), "hosts")
        self.on_host = hosts.count(hosts[self.rank])
        if spread.sync == "all":
            self.near = range(self.shards)
        elif spread.sync == "group" and self.group is not None:
            ranks = self._ranks_nearby(hosts)
            self.near, self.nearby = self._shards_of(ranks), _sharing_among(ranks, self.group)

    @property
    def waits(self) -> bool:
        """Whether the ranks meet at every batch norm."""
        return len(self.near) > len(self.own)

    def gather(self, values: np.ndarray, meeting: Meeting) -> np.ndarray:
        """What all shards have to say: ``(own shards, k)`` float64 to ``(shards, k)``, in the order of the shards."""
        return _gather(self.processes, values, meeting)

    def gather_near(self, values: np.ndarray, meeting: Meeting) -> np.ndarray:
        """What the shards in ``near`` have to say: ``(own shards, k)`` float64 to ``(near shards, k)``."""
        return _gather(self.nearby, values, meeting) if self.waits else values

    def least(self, own: int, meeting: Meeting) -> int:
        """The least number that any rank has."""
        return int(self.gather(np.full((len(self.own), 1), float(own)), meeting).min())

    def tell(self, content: bytes, what: str) -> list[bytes]:
        """What every rank has to say, in rank order; of any length. ``what`` it is about is for a diagnosis."""
        return gather_bytes(content, self.group, what)

    def take(self, content: bytes, what: str) -> bytes:
        """What rank 0 has to say; the others' contents are not read."""
        return broadcast_bytes(content, self.group, what)

    def exchange(self, contents: list[bytes], what: str) -> list[bytes]:
        """``contents[r]`` goes to rank r; returns what each rank had for this one."""
        return exchange_bytes(contents, self.group, what)

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank left in the middle of an epoch; meetings from now on raise."""
        for processes in (self.processes, self.nearby):
            if processes is not None:
                processes.fail(error)

    def _shards_of(self, ranks: range) -> range:
        each = self.shards // self.ranks
        return range(ranks.start * each, ranks.stop * each)

    def _ranks_nearby(self, hosts: list[bytes]) -> range:
        size = self.spread.group_size
        if size is None:
            begin = end = self.rank
            while begin > 0 and hosts[begin - 1] == hosts[self.rank]:
                begin -= 1
            while end < self.ranks and hosts[end] == hosts[self.rank]:
                end += 1
            return range(begin, end)
        if self.ranks % size:
            raise ValueError(
                f"{self.ranks} ranks cannot be cut into groups of {size}; choose a group_size that divides them"
            )
        begin = self.rank // size * size
        return range(begin, begin + size)


def find_peers(spread: Spread | None, process_group: ProcessGroup | str | None) -> Peers | None:
    """The peers that a person asked for; None: this process has all rows.

    Raises:
        ValueError: a process group without a spread, an unknown name of one, or as :class:`Peers`.
    """
    if spread is not None:
        return Peers(spread, process_group)
    if isinstance(process_group, ProcessGroup):
        raise ValueError("a process_group was given without a spread; pass spread=Spread() to train over its ranks")
    check_process_group(process_group)
    return None


def add_in_order(parts: np.ndarray) -> np.ndarray:
    """``(shards, n)`` to ``(n,)``: the first and the second, and to that the third, and so on."""
    total: np.ndarray = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def _gather(processes: Processes | None, values: np.ndarray, meeting: Meeting) -> np.ndarray:
    own = np.ascontiguousarray(values, dtype=np.float64)
    if processes is None:
        return own
    # Copied: the memory that a meeting answers in is the next one's.
    gathered: np.ndarray = processes.gather(torch.from_numpy(own), meeting).numpy().copy()
    return gathered.reshape(-1, own.shape[1])


def _sharing_among(ranks: range, group: ProcessGroup) -> Processes | None:
    """The sharing of some neighbouring ranks of a group; None: only one, who shares with nobody."""
    if len(ranks) == 1:
        return None
    members = tuple(dist.get_global_rank(group, rank) for rank in ranks)
    if len(ranks) == dist.get_world_size(group):
        made = group
    else:
        known = _neighbours.setdefault(group, {})
        if members not in known:
            known[members] = dist.new_group(list(members), backend="gloo", use_local_synchronization=True)
        made = known[members]
    sharing = sharing_of(made)
    assert isinstance(sharing, Processes)
    return sharing
