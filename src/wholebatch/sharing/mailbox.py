"""Ranks of one host meet in shared memory (native/mailbox.h): microseconds, and everyone sees where everyone stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wholebatch.sharing.diagnosis import LOST, Doing, MeetingError, Position, explain_absence, explain_disagreement
from wholebatch.sharing.header import Header
from wholebatch.sharing.host import Process
from wholebatch.sharing.lookout import Lookout

if TYPE_CHECKING:
    from wholebatch._native import Mailbox

_MET, _WAITING, _DISAGREED, _ALL_STAND_BY = range(4)  # native/mailbox.h
_SLICE = 0.05  # seconds between two looks at signals, and at the ranks that are missing


class SharedMemory:
    """A :class:`wholebatch.sharing.transport.HostTransport` for float32 and float64."""

    def __init__(
        self, box: Mailbox, lookout: Lookout, processes: Sequence[Process], timeout: Callable[[], float]
    ) -> None:
        self.box, self._lookout, self._processes, self._timeout = box, lookout, processes, timeout
        self._rank = lookout.rank
        self._rows: dict[int, Tensor] = {}
        self._begun = (torch.empty(0), torch.empty(0))  # vector and answer of the meeting that was begun

    def exchange(self, header: bytes, count: float, vectors: tuple[Tensor, ...]) -> Tensor:
        first, second = vectors if len(vectors) == 2 else (vectors[0], None)
        if not (first.is_contiguous() and (second is None or second.is_contiguous())):
            return self.exchange(header, count, tuple(vector.contiguous() for vector in vectors))
        elements, more = first.numel(), 0 if second is None else second.numel()
        gathered = self._row_of_each(1 + elements + more)
        status = self.box.meet(
            header,
            count,
            first.data_ptr(),
            elements,
            0 if second is None else second.data_ptr(),
            more,
            first.dtype == torch.float64,
            gathered.data_ptr(),
            _SLICE,
        )
        if status != _MET:
            self._wait(status, time.monotonic() - _SLICE, limited=True)
        return gathered

    def begin(self, header: bytes, vector: Tensor) -> None:
        vector = vector.contiguous()
        gathered = self._row_of_each(1 + vector.numel())
        wide = vector.dtype == torch.float64
        self.box.begin(header, vector.data_ptr(), vector.numel(), wide, gathered.data_ptr())
        self._begun = vector, gathered

    def finish(self) -> Tensor:
        status = self.box.wait(_SLICE)
        if status != _MET:
            self.settle(status)
        return self._begun[1]

    def settle(self, status: int) -> None:
        """After a wait of a slice that was in vain: go on waiting.

        Raises:
            MeetingError: the ranks do not meet.
        """
        self._wait(status, time.monotonic() - _SLICE, limited=True)

    def _row_of_each(self, width: int) -> Tensor:
        """Memory for what is gathered, the same again and again: making it takes longer than the meeting."""
        if width not in self._rows:
            self._rows[width] = torch.empty((len(self._processes), width), dtype=torch.float64)
        return self._rows[width]

    def stand_by(self) -> bool:
        status = self.box.stand_by(_SLICE)
        if status == _WAITING:
            status = self._wait(status, time.monotonic() - _SLICE, limited=False)
        return status != _ALL_STAND_BY

    def leave(self, doing: Doing, text: str) -> None:
        self.box.mark(int(doing), text.encode())

    def _wait(self, status: int, since: float, *, limited: bool) -> int:
        while status == _WAITING:
            self._look_around(time.monotonic() - since, limited)
            status = self.box.wait(_SLICE)
        if status == _DISAGREED:
            # Everyone finds this out at the same time, and stays where it is.
            raise explain_disagreement(self.positions(), self._rank, self._lookout.subject)
        return status

    def _look_around(self, waited: float, limited: bool) -> None:
        missing = self.box.missing()
        positions = self.positions()
        if any(positions[rank].doing in LOST for rank in missing) and self.box.missing():
            raise self._absence(positions, waited)
        if limited and waited > self._timeout():
            raise self._absence(positions, waited)

    def _absence(self, positions: Sequence[Position], waited: float) -> MeetingError:
        return explain_absence(positions, self._rank, waited, subject=self._lookout.subject)

    def positions(self) -> list[Position]:
        """Where every rank stands, as its memory and the system say."""
        return [self._position(rank) for rank in range(len(self._processes))]

    def _position(self, rank: int) -> Position:
        code, number, seconds, header, text = self.box.position(rank)
        process, doing = self._processes[rank], Doing(code)
        if rank != self._rank and doing not in LOST and process.is_gone():
            doing = Doing.GONE
        found = Header.unpack(header) if number else None
        return Position(doing, number, seconds, found, text.decode(errors="replace"), process.pid)
