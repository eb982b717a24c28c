"""One rank's connections to the others for messages: by gloo, of our own, whatever the group's backend.

A message begins with a front of fixed size, which says what the message is and how long, with the first bytes of it:
gloo aborts the process where ranks bring different sizes. Waits are in slices, with the diagnosis of
:mod:`wholebatch.sharing.lookout`.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import BroadcastOptions, ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore, _get_process_group_store

from wholebatch.sharing import exits
from wholebatch.sharing.board import Board
from wholebatch.sharing.connection import connect, keep, wait
from wholebatch.sharing.diagnosis import MESSAGES, Doing, MeetingError, explain_disagreement
from wholebatch.sharing.header import Header
from wholebatch.sharing.host import Process
from wholebatch.sharing.lookout import Lookout
from wholebatch.sharing.timeout import timeout_of

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import ProcessGroupGloo

Content = bytes | bytearray | memoryview

PORTION = 16 << 20
"""Bytes between two ranks in one go: what an exchange needs of memory beside its contents."""
SHORT = 512
"""Bytes of a content that go along with the front: most of what ranks tell each other is no longer."""
_FRONT = struct.Struct("<Q16s96s")  # number, kind, what it is about; then the first bytes, and the sizes


class Post:
    """Opened by the first message. After an error the ranks are no longer at the same place: it is raised again."""

    def __init__(self, group: ProcessGroup) -> None:
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.thread = threading.get_ident()
        self._process = os.getpid()
        self._store = PrefixStore("messages", _get_process_group_store(group))
        self._lookout = Lookout(Board(self._store), self.rank, self.ranks, timeout_of(group), MESSAGES)
        self._lookout.announce(Process.own())
        weakref.finalize(self, self._lookout.rest)  # a thread holds the lookout, not this
        self._number = 0
        self._group: ProcessGroupGloo | None = None
        self._broken: MeetingError | None = None
        self._has_left = False
        exits.watch(self)

    def gather(self, content: Content, what: str) -> list[bytes]:
        """See :func:`wholebatch.sharing.messages.gather_bytes`, as the two below."""
        with self._meet():
            sizes, short = self._open("gather", what, [len(content)] * self.ranks, content)
            gathered = [self._spread(content, short[rank], int(sizes[rank, 0]), rank) for rank in range(self.ranks)]
            self._close(sizes)
            return gathered

    def broadcast(self, content: Content, what: str, source: int) -> bytes:
        with self._meet():
            sizes, short = self._open("broadcast", what, [len(content)] * self.ranks, content)
            told = self._spread(content, short[source], int(sizes[source, 0]), source)
            self._close(sizes[source])
            return told

    def exchange(self, contents: Sequence[Content], what: str) -> list[bytes]:
        with self._meet():
            sizes, _ = self._open("exchange", what, [len(content) for content in contents])
            dealt = self._deal(contents, sizes)
            self._close(sizes)
            return dealt

    def give_up(self, error: BaseException) -> None:
        """Tell the others that this rank raised, and raise from now on."""
        doing, text = exits.reason_of(error)
        self.leave(doing, text)
        if not isinstance(error, MeetingError):
            cause = f"rank {self.rank} raised {text}"
            error = MeetingError(f"messages between ranks stopped: {cause}", cause)
        self._broken = self._broken or error

    def leave(self, doing: Doing, text: str) -> None:
        """Tell the others that this rank will not come any more, and why."""
        if self._has_left or self._process != os.getpid():
            return
        self._has_left = True  # the first reason is the one
        self._lookout.leave(doing, text)
        if self._group is not None and doing != Doing.ENDED:
            keep(self._group)

    @contextmanager
    def _meet(self) -> Iterator[None]:
        if self._broken is not None:
            raise self._broken.again()
        if self._process != os.getpid():
            raise RuntimeError(f"process {os.getpid()} was forked from rank {self.rank}, and is not a rank")
        self.thread = threading.get_ident()
        try:
            yield
        except BaseException as error:  # KeyboardInterrupt too: this rank has left in the middle of a message
            self.give_up(error)
            raise
        self._lookout.stand(Doing.OUTSIDE)

    def _open(self, kind: str, what: str, sizes: list[int], content: Content = b"") -> tuple[np.ndarray, list[bytes]]:
        """Tell how many bytes this rank has for each, and the first of them.

        Returns:
            ``(ranks, ranks)``, from whom and for whom; and what :data:`SHORT` bytes of each rank's hold.
        """
        self._number += 1
        header = Header(what, kind, 1, sum(sizes), torch.uint8)
        self._lookout.stand(Doing.MEETING, number=self._number, header=header)
        if self._group is None:
            self._lookout.answer()
            self._group = connect(PrefixStore("gloo", self._store), self._lookout)
        front = _FRONT.pack(self._number, kind.encode(), what.encode()[-96:])
        begun = bytes(content[:SHORT]).ljust(SHORT, b"\0")
        sent = _as_tensor(front + begun + np.asarray(sizes, "<i8").tobytes())
        received = torch.empty((self.ranks, len(sent)), dtype=torch.uint8)
        wait(self._group._allgather_base(received.view(-1), sent), self._lookout)  # type: ignore[attr-defined]
        rows = [row.tobytes() for row in received.numpy()]
        gathered = np.stack([np.frombuffer(row[_FRONT.size + SHORT :], "<i8") for row in rows])
        self._hear(rows, gathered)
        if any(row[: _FRONT.size] != front for row in rows):
            raise explain_disagreement(self._lookout.known, self.rank, MESSAGES)
        return gathered, [row[_FRONT.size : _FRONT.size + SHORT] for row in rows]

    def _close(self, sizes: np.ndarray) -> None:
        """Wait until all have all of a long message: a rank that is done may end, and others would be told of it."""
        if sizes.max() > SHORT:
            assert self._group is not None
            done = torch.empty(self.ranks, dtype=torch.uint8)
            wait(self._group._allgather_base(done, done[:1].clone()), self._lookout)  # type: ignore[attr-defined]

    def _hear(self, rows: list[bytes], sizes: np.ndarray) -> None:
        """Where the others stand, for a diagnosis."""
        for rank, row in enumerate(rows):
            number, *texts = _FRONT.unpack_from(row)
            kind, what = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
            header = Header(what, kind, 1, int(sizes[rank].sum()), torch.uint8)
            here = self._lookout.known[rank]
            self._lookout.known[rank] = replace(here, doing=Doing.MEETING, number=number, header=header)

    def _spread(self, content: Content, short: bytes, size: int, source: int) -> bytes:
        """``size`` bytes from rank ``source`` to all, unless they are short, and all have them."""
        assert self._group is not None
        if size <= SHORT:
            return short[:size]
        values = _as_tensor(content) if source == self.rank else torch.empty(size, dtype=torch.uint8)
        options = BroadcastOptions()
        options.rootRank = source
        wait(self._group.broadcast([values], options), self._lookout)  # type: ignore[attr-defined]
        return bytes(content) if source == self.rank else values.numpy().tobytes()

    def _deal(self, contents: Sequence[Content], sizes: np.ndarray) -> list[bytes]:
        """In portions, so that no rank holds all that it sends and gets once more."""
        assert self._group is not None
        views = [memoryview(content) for content in contents]
        pieces: list[list[bytes]] = [[] for _ in views]
        for start in range(0, int(sizes.max(initial=0)), PORTION):
            lengths = np.clip(sizes - start, 0, PORTION)
            out, into = lengths[self.rank].tolist(), lengths[:, self.rank].tolist()
            sent = torch.cat([_as_tensor(view[start : start + n]) for view, n in zip(views, out, strict=True)])
            received = torch.empty(sum(into), dtype=torch.uint8)
            wait(self._group.alltoall_base(received, sent, into, out), self._lookout)  # type: ignore[attr-defined]
            ends = np.cumsum(into).tolist()
            for piece, end, n in zip(pieces, ends, into, strict=True):
                piece.append(received.numpy()[end - n : end].tobytes())
        return [b"".join(piece) for piece in pieces]


def _as_tensor(content: Content) -> Tensor:
    """``(bytes,)`` uint8; a copy, since torch knows no memory that may not be written to."""
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
