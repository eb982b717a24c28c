"""The first meeting of a group: who is on which host, and how they will meet from then on."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import astuple

from wholebatch.kernels import native_available, native_module
from wholebatch.sharing.board import Board
from wholebatch.sharing.diagnosis import Doing
from wholebatch.sharing.gloo import Gloo
from wholebatch.sharing.host import Process
from wholebatch.sharing.lookout import CARD, SLICE, Lookout
from wholebatch.sharing.mailbox import SharedMemory
from wholebatch.sharing.transport import HostTransport

# "gloo": no shared memory, also on one host. For tests and measurements; one rank that has it decides for all.
TRANSPORT_VARIABLE = "WHOLEBATCH_TRANSPORT"


def open_transport(board: Board, lookout: Lookout, ranks: int, timeout: Callable[[], float]) -> HostTransport:
    """Wait for all ranks, and choose: shared memory where every rank could map it, or else gloo.

    Raises:
        MeetingError: a rank did not come.
        ValueError: the variable names an unknown transport.
    """
    lookout.stand(Doing.MEETING)
    lookout.answer()
    card = [*astuple(Process.own()), _can_share_memory()]
    cards = _put_and_gather(board, lookout, ranks, CARD, card)
    processes = [Process(*card[:3]) for card in cards]
    lookout.meet_processes(processes)
    near = all(process.is_near(processes[0]) for process in processes)
    if near and all(card[3] for card in cards):
        opened = _open_shared_memory(board, lookout, processes, timeout)
        if opened is not None:
            return opened
    return Gloo(board.store, lookout)


def _can_share_memory() -> bool:
    wanted = os.environ.get(TRANSPORT_VARIABLE, "")
    if wanted not in ("", "shared_memory", "gloo"):
        raise ValueError(f"{TRANSPORT_VARIABLE} must be shared_memory or gloo; it is {wanted!r}")
    return wanted != "gloo" and native_available() and hasattr(native_module(), "Mailbox")


def _open_shared_memory(
    board: Board, lookout: Lookout, processes: list[Process], timeout: Callable[[], float]
) -> SharedMemory | None:
    """Rank 0 makes it, all try to open it; None on every rank where one of them could not."""
    box, ranks, rank = None, len(processes), lookout.rank
    if rank == 0:
        cookie = secrets.randbits(63)
        try:
            box = native_module().Mailbox(cookie=cookie, ranks=ranks, rank=rank)
            board.put("memory", 0, [f"/proc/{os.getpid()}/fd/{box.descriptor()}", cookie])
        except RuntimeError:  # no memory left, or not allowed
            board.put("memory", 0, None)
    _await(board, lookout, "memory", [0])
    made = board.get("memory", 0)
    if made is not None and rank != 0:
        try:
            box = native_module().Mailbox(path=made[0], cookie=made[1], ranks=ranks, rank=rank)
        except RuntimeError:  # rank 0 may not be looked into, as in another container
            box = None
    opened = _put_and_gather(board, lookout, ranks, "opened", box is not None)
    if box is None or not all(opened):
        return None
    box.seal()
    lookout.rest()
    return SharedMemory(box, lookout, processes, timeout)


def _put_and_gather(board: Board, lookout: Lookout, ranks: int, kind: str, notice: object) -> list:
    board.put(kind, lookout.rank, notice)
    _await(board, lookout, kind, list(range(ranks)))
    return [board.get(kind, rank) for rank in range(ranks)]


def _await(board: Board, lookout: Lookout, kind: str, ranks: list[int]) -> None:
    since = time.monotonic()
    while not board.wait(kind, ranks, SLICE):
        lookout.look(time.monotonic() - since)
