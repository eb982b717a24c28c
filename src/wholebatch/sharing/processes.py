"""The mini-batch over the processes of a ``torch.distributed`` group."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore, _get_process_group_store

from wholebatch.moments import Moments
from wholebatch.sharing import exits, merging
from wholebatch.sharing.board import Board
from wholebatch.sharing.collective import Collective
from wholebatch.sharing.connection import connect, keep
from wholebatch.sharing.diagnosis import Doing, MeetingError
from wholebatch.sharing.header import pack
from wholebatch.sharing.host import Process
from wholebatch.sharing.lookout import Lookout
from wholebatch.sharing.mailbox import SharedMemory
from wholebatch.sharing.opening import open_transport
from wholebatch.sharing.sharing import Meeting
from wholebatch.sharing.timeout import timeout_of
from wholebatch.sharing.transport import HostTransport, Transport
from wholebatch.sharing.watch import watchers

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import ProcessGroupGloo

    from wholebatch._native import Mailbox


class Processes:
    """The ranks of a group. The first meeting, of all ranks together, opens the way that they will meet.

    Parts are merged in rank order in float64, so every rank has the same bits, whatever the transport. After an error
    the ranks are no longer at the same place: every later call raises that error again.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.members = tuple(dist.get_process_group_ranks(group))
        self.thread = threading.get_ident()
        self._group = weakref.ref(group)  # these are kept by their group, and do not keep it
        self._process = os.getpid()
        self._board = Board(_get_process_group_store(group))
        # Not bound to this object: a thread holds the lookout, and would keep the group's sharing for ever.
        self._timeout = timeout_of(group)
        self.lookout = Lookout(self._board, self.rank, self.ranks, self._timeout)
        self.lookout.announce(Process.own())
        weakref.finalize(self, self.lookout.rest)
        self._on_host: HostTransport | None = None
        self._begun = b""  # the header of a meeting that was begun
        self._connection: ProcessGroupGloo | None = None
        self._on_device: Transport | None = None
        self._broken: MeetingError | None = None
        self._has_left = False
        exits.watch(self)

    def merge(self, moments: Moments, meeting: Meeting) -> Moments:
        """See :class:`wholebatch.sharing.Sharing`.

        Raises:
            MeetingError: the ranks do not meet here, and a table of where they are.
            TypeError: the moments are neither float32 nor float64.
        """
        mean = moments.mean
        header = pack(meeting.layer, meeting.phase, 2, mean.shape[0], mean.dtype)
        return merging.merge_moments(self._exchange(header, moments.count, (mean, moments.m2)), mean)

    def merge_into(self, statistics: Tensor, count: float, layer: str) -> float:
        """:meth:`merge` in the forward pass, of mean and M2 in the first rows of ``statistics``, and back into them.

        Returns:
            The count of the whole.
        """
        own = statistics[:2]
        header = pack(layer, "forward", 2, own.shape[1], own.dtype)
        return merging.merge_into(self._exchange(header, count, (own,)), own)

    def sum(self, vectors: Tensor, meeting: Meeting) -> Tensor:
        """See :class:`wholebatch.sharing.Sharing`. Errors as :meth:`merge`."""
        rows = vectors.shape[0] if vectors.dim() == 2 else 1
        header = pack(meeting.layer, meeting.phase, rows, vectors.shape[-1], vectors.dtype)
        return merging.add_parts(self._exchange(header, 0, (vectors,)), vectors)

    def gather(self, vectors: Tensor, meeting: Meeting) -> Tensor:
        """What every rank brings: ``(k, C)`` to ``(ranks, k, C)`` float64, in rank order. Errors as :meth:`merge`."""
        header = pack(meeting.layer, meeting.phase, *vectors.shape, vectors.dtype)
        gathered = self._exchange(header, 0, (vectors,))
        return gathered[:, 1:].reshape(self.ranks, *vectors.shape)

    def begin(self, vector: Tensor, meeting: Meeting) -> None:
        """Post the own vector ``(n,)``, on the CPU, and go on: :meth:`finish` is the next call.

        The vector stays as it is until then. Errors as :meth:`merge`.
        """
        header = pack(meeting.layer, meeting.phase, 1, vector.shape[0], vector.dtype)
        transport = self.open()
        self.thread = threading.get_ident()
        self._begun = header
        with self._breaking():
            transport.begin(header, vector)

    def finish(self) -> Tensor:
        """Wait for the others: ``(ranks, 1 + n)`` float64, the first column zeros. Errors as :meth:`merge`.

        Valid until the next meeting.
        """
        self._check()
        assert self._on_host is not None
        came = time.perf_counter()
        with self._breaking():
            gathered = self._on_host.finish()
        for see in watchers:
            see(self.members, self._begun, time.perf_counter() - came)
        return gathered

    def mailbox(self) -> Mailbox | None:
        """The memory that the ranks meet in, for native code that meets there by itself, as :meth:`begin` would.

        A meeting that did not come about at once goes to :meth:`settle`. None: there is no such memory, or somebody
        watches the meetings. Errors as :meth:`merge`.
        """
        transport = self._on_host
        if transport is None or self._broken is not None or self._process != os.getpid():
            transport = self.open()
        self.thread = threading.get_ident()
        return transport.box if isinstance(transport, SharedMemory) and not watchers else None

    def settle(self, status: int) -> None:
        """Wait for the ranks that have not come to a meeting in the mailbox yet. Errors as :meth:`merge`."""
        assert isinstance(self._on_host, SharedMemory)
        with self._breaking():
            self._on_host.settle(status)

    def stand_by(self) -> bool:
        """Take part in one meeting of the others with no examples, whatever it is. False: all ranks stand by."""
        if self._on_device is not None:
            return self._on_device.stand_by()
        self._check()
        with self._breaking():
            return self._open().stand_by()

    def leave(self, doing: Doing, text: str) -> None:
        """Tell the others that this rank will not come any more, and why."""
        if not self._has_left and self._process == os.getpid():
            self._has_left = True  # the first reason is the one: an exception is followed by the end of the process
            (self._on_host or self.lookout).leave(doing, text)
            if self._connection is not None and doing != Doing.ENDED:
                keep(self._connection)

    def _exchange(self, header: bytes, count: float, vectors: tuple[Tensor, ...]) -> Tensor:
        self._check()
        transport: Transport
        if vectors[0].is_cpu:
            transport = self._on_host or self._open()
        elif self._serves(vectors[0].device):
            transport = self._on_device or self._open_on_device()
        else:
            transport, vectors = self._on_host or self._open(), tuple(vector.cpu() for vector in vectors)
        self.thread = threading.get_ident()
        try:
            if not (watchers and vectors[0].is_cpu):
                return transport.exchange(header, count, vectors)
            came = time.perf_counter()
            gathered = transport.exchange(header, count, vectors)
            seconds = time.perf_counter() - came
        except BaseException as error:  # KeyboardInterrupt too: this rank has left in the middle of a meeting
            self.fail(error)
            raise
        for see in watchers:
            see(self.members, header, seconds)
        return gathered

    def _serves(self, device: torch.device) -> bool:
        """Whether the group has a backend for that device. gloo would copy to the host: so do we, with a diagnosis."""
        group = self._group()
        try:
            return group is not None and group._get_backend(device).name() != "gloo"
        except RuntimeError:
            return False

    def _open(self) -> HostTransport:
        if self._on_host is None:
            with self._breaking():
                self._on_host = open_transport(self._board, self.lookout, self.ranks, self._timeout)
        return self._on_host

    def _open_on_device(self) -> Transport:
        group = self._group()
        assert group is not None
        self._on_device = Collective(group)
        return self._on_device

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken.again()
        if self._process != os.getpid():
            raise RuntimeError(
                f"process {os.getpid()} was forked from rank {self.rank} (process {self._process}) and is not a rank: "
                "initialise torch.distributed in it, or train in the rank itself"
            )

    @property
    def shares_memory(self) -> bool:
        """Whether all ranks are on one host, and meet in its memory. Opens the way that they meet."""
        return isinstance(self.open(), SharedMemory)

    def connect(self) -> ProcessGroupGloo:
        """A connection of our own between the ranks, by gloo, for what meets in no meeting; always the same one.

        All call this together, the first time. Errors as :meth:`merge`.
        """
        self.open()
        if self._connection is None:
            with self._breaking():
                self._connection = connect(PrefixStore("beside", self._board.store), self.lookout)
        return self._connection

    def open(self) -> HostTransport:
        """How the ranks of the group meet. Errors as :meth:`merge`."""
        self._check()
        return self._on_host or self._open()

    def fail(self, error: BaseException) -> None:
        """This rank will not come to the meetings that the others expect: they are told, and later calls raise."""
        if self._broken is not None:
            return
        doing, text = exits.reason_of(error)
        self.leave(doing, text)
        if not isinstance(error, MeetingError):
            cause = f"rank {self.rank} raised {text} in a meeting"
            error = MeetingError(f"{self.lookout.subject.name} stopped: {cause}", cause)
        self._broken = error

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # KeyboardInterrupt too: this rank has left in the middle of a meeting
            self.fail(error)
            raise
