"""Ranks of several hosts, or without the compiled part, meet by gloo: one all_gather of a fixed size per meeting.

gloo aborts the process where ranks bring different sizes, so the first message has always the same: a header, then as
many numbers as fit. What does not fit follows in a second one, after the headers agreed and with them the size.

The group is one of our own, so that a collective that never ends leaves the person's group as it was.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import Work
from torch.distributed.distributed_c10d import PrefixStore, Store

from wholebatch.sharing.connection import connect, keep, wait
from wholebatch.sharing.diagnosis import Doing, explain_disagreement
from wholebatch.sharing.header import HEADER_BYTES, Header
from wholebatch.sharing.lookout import Lookout

_FRONT = struct.Struct("<QQd")  # stands by, number, count
_FRONT_WORDS = (_FRONT.size + HEADER_BYTES) // 8
_FIRST = 512  # numbers in the first message: 4 KiB, the moments of 256 channels


class _Front(NamedTuple):
    idle: bool
    number: int
    elements: float
    header: bytes


class Gloo:
    """A :class:`wholebatch.sharing.transport.HostTransport` for float32 and float64."""

    def __init__(self, store: Store, lookout: Lookout) -> None:
        self._lookout, self._rank, self._ranks = lookout, lookout.rank, len(lookout.known)
        self._sent = torch.zeros(_FRONT_WORDS + _FIRST, dtype=torch.int64)
        self._received = torch.zeros((self._ranks, _FRONT_WORDS + _FIRST), dtype=torch.int64)
        self._header = b"\0" * HEADER_BYTES  # of the last meeting
        self._begun: tuple[Tensor, Work] | None = None  # the payload of the meeting under way, and its first message
        self._group = connect(PrefixStore("gloo", store), lookout)

    def exchange(self, header: bytes, count: float, vectors: tuple[Tensor, ...]) -> Tensor:
        self._begin(header, count, torch.cat([vector.reshape(-1) for vector in vectors]).double())
        return self.finish()

    def begin(self, header: bytes, vector: Tensor) -> None:
        self._begin(header, 0, vector.reshape(-1).double())

    def finish(self) -> Tensor:
        assert self._begun is not None
        payload, work = self._begun
        header, self._begun = self._header, None
        fronts = self._read_fronts(work, limited=True)
        if any(not front.idle and front.header != header for front in fronts):
            raise explain_disagreement(self._lookout.known, self._rank, self._lookout.subject)
        gathered = self._gather_payloads(payload, limited=True)
        for row, front in zip(gathered, fronts, strict=True):
            row[0] = front.elements
            if front.idle:
                row[:] = 0
        self._lookout.stand(Doing.OUTSIDE)
        return gathered

    def _begin(self, header: bytes, count: float, payload: Tensor) -> None:
        self._header = header
        number = self._lookout.known[self._rank].number + 1
        self._lookout.stand(Doing.MEETING, number=number, header=Header.unpack(header))
        self._begun = payload, self._send_front(_Front(False, number, count, header), payload)

    def stand_by(self) -> bool:
        number = self._lookout.known[self._rank].number
        self._lookout.stand(Doing.STANDING_BY)
        nothing = torch.zeros(0, dtype=torch.float64)
        fronts = self._read_fronts(self._send_front(_Front(True, number, 0, self._header), nothing), limited=False)
        active = [front for front in fronts if not front.idle]
        if not active:
            self._lookout.stand(Doing.OUTSIDE)
            return False
        if any(front.header != active[0].header for front in active):
            raise explain_disagreement(self._lookout.known, self._rank, self._lookout.subject)
        header = Header.unpack(active[0].header)
        assert header is not None
        self._lookout.stand(Doing.STANDING_BY, number=active[0].number)
        self._gather_payloads(torch.zeros(header.vectors * header.channels, dtype=torch.float64), limited=False)
        return True

    def leave(self, doing: Doing, text: str) -> None:
        self._lookout.leave(doing, text)
        if doing != Doing.ENDED:
            keep(self._group)

    def _send_front(self, own: _Front, payload: Tensor) -> Work:
        front = bytearray(_FRONT.pack(*own[:3]) + own.header)
        self._sent[:_FRONT_WORDS] = torch.frombuffer(front, dtype=torch.int64)
        first = payload[:_FIRST]
        self._sent[_FRONT_WORDS : _FRONT_WORDS + len(first)] = first.view(torch.int64)
        return self._gather(self._received, self._sent)

    def _read_fronts(self, work: Work, *, limited: bool) -> list[_Front]:
        wait(work, self._lookout, limited=limited)
        fronts = []
        for rank, row in enumerate(self._received[:, :_FRONT_WORDS].numpy()):
            packed = row.tobytes()
            idle, number, count = _FRONT.unpack_from(packed)
            header = packed[_FRONT.size :]
            if rank != self._rank:
                self._lookout.known[rank] = replace(
                    self._lookout.known[rank],
                    doing=Doing.STANDING_BY if idle else Doing.MEETING,
                    number=number,
                    header=Header.unpack(header),
                )
            fronts.append(_Front(bool(idle), number, count, header))
        return fronts

    def _gather_payloads(self, payload: Tensor, *, limited: bool) -> Tensor:
        """``(ranks, 1 + elements)``, the first column not filled in."""
        elements = len(payload)
        first = min(elements, _FIRST)
        gathered = torch.empty((self._ranks, 1 + elements), dtype=torch.float64)
        gathered[:, 1 : 1 + first] = self._received[:, _FRONT_WORDS : _FRONT_WORDS + first].view(torch.float64)
        if elements > first:
            rest = torch.empty((self._ranks, elements - first), dtype=torch.float64)
            wait(self._gather(rest, payload[first:].contiguous()), self._lookout, limited=limited)
            gathered[:, 1 + first :] = rest
        return gathered

    def _gather(self, received: Tensor, sent: Tensor) -> Work:
        work: Work = self._group._allgather_base(received.view(-1), sent)  # type: ignore[attr-defined]
        return work
