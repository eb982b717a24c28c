"""Keeping an eye on ranks that cannot be seen in shared memory: by their notices on the board, and by their processes.

A rank that waits looks around between the slices of its wait. A rank in trouble sounds the alarm, and then everyone
says where it stands; a thread does it for a rank that is stuck in something else.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import Any

from wholebatch.sharing.board import Board
from wholebatch.sharing.diagnosis import BATCH_NORM, LOST, Doing, MeetingError, Position, Subject, explain_absence
from wholebatch.sharing.host import Process

SLICE = 0.2  # seconds between two looks
CARD = "card"  # the notice that a rank puts on the board when it comes to the first meeting
_PROCESS = "process"  # and the one that it puts there as soon as it hears of the group
_ANSWER = 1.0  # seconds that ranks get to say where they stand


class Lookout:
    """One rank's view of its group.

    Attributes:
        rank: this rank.
        subject: what the ranks meet for, as a diagnosis says it.
        known: where each rank stood when it was last heard of; at ``rank`` itself, where it stands.
    """

    def __init__(
        self, board: Board, rank: int, ranks: int, timeout: Callable[[], float], subject: Subject = BATCH_NORM
    ) -> None:
        self.rank, self._board, self._timeout, self.subject = rank, board, timeout, subject
        self.known = [Position(Doing.ABSENT)] * ranks
        self._near: dict[int, Process] = {}
        self._own_process = Process("", 0, 0)
        self._moment = time.monotonic()  # when this rank came to stand where it does
        self._suspicious = False
        self._left = threading.Event()

    def announce(self, process: Process) -> None:
        """Tell the others which process this rank is, before any of them waits for it."""
        self._own_process = process
        with contextlib.suppress(RuntimeError):  # the first meeting tells of it
            self._board.put(_PROCESS, self.rank, astuple(process))

    def meet_processes(self, processes: Sequence[Process]) -> None:
        """Now it is known who the ranks are, and that all have come."""
        for r, process in enumerate(processes):
            self._meet_process(r, process)
            doing = self.known[r].doing if r == self.rank else Doing.OUTSIDE
            self.known[r] = replace(self.known[r], doing=doing)

    def _meet_process(self, rank: int, process: Process) -> None:
        self.known[rank] = replace(self.known[rank], pid=process.pid)
        if rank != self.rank and process.is_near(self._own_process):
            self._near[rank] = process

    def stand(self, doing: Doing, **changes: Any) -> None:
        """This rank stands elsewhere now."""
        self._moment, self._suspicious = time.monotonic(), False
        self.known[self.rank] = replace(self.known[self.rank], doing=doing, **changes)

    def look(self, waited: float, *, limited: bool = True) -> None:
        """To be called every ``SLICE`` seconds of a wait; ``limited``: the timeout counts.

        Raises:
            MeetingError: the wait is vain.
        """
        if limited and waited > self._timeout():
            raise self.explain(waited)
        try:
            self._find_processes()
            trouble = self._board.sounds() or any(process.is_gone() for process in self._near.values())
        except RuntimeError as error:
            raise self.explain(waited, str(error)) from error
        # A rank may end when it has given its part, and it takes a moment until the others have it: look twice.
        if trouble and self._suspicious:
            raise self.explain(waited)
        self._suspicious = trouble

    def _find_processes(self) -> None:
        """Of ranks that were not met yet: those that have been announced."""
        for rank, position in enumerate(self.known):
            if position.pid is None and (told := self._board.get(_PROCESS, rank)) is not None:
                self._meet_process(rank, Process(*told))

    def explain(self, waited: float, lost: str = "") -> MeetingError:
        """The diagnosis, after a second at most; ``lost``: what the system said of a connection."""
        with contextlib.suppress(RuntimeError):
            self._board.sound()
            self._board.put_position(self.rank, self._own())
            self._find_processes()
        deadline = time.monotonic() + _ANSWER
        while True:
            positions = [self._ask(rank) for rank in range(len(self.known))]
            answered = all(position.doing != Doing.SILENT for position in positions)
            if answered or self._board.gone or time.monotonic() > deadline:
                break
            time.sleep(SLICE / 4)
        if self._board.gone:
            holder = "its process is gone (rank 0, where torchrun does not hold it), or the network to it"
            lost = f"the group's store is out of reach: {holder}{f'; {lost}' if lost else ''}"
        return explain_absence(positions, self.rank, waited, lost, self.subject)

    def leave(self, doing: Doing, text: str) -> None:
        """This rank will not come any more."""
        self.stand(doing, text=text)
        self._left.set()
        with contextlib.suppress(RuntimeError):
            self._board.put_position(self.rank, self._own())
            self._board.sound()

    def answer(self) -> None:
        """From now on say where this rank stands when somebody asks, whatever it is doing."""
        threading.Thread(target=self._answer, name="wholebatch lookout", daemon=True).start()

    def rest(self) -> None:
        """The others see this rank in another way now."""
        self._left.set()

    def _answer(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it whoever would read
            while not self._left.wait(SLICE):
                if self._board.sounds():
                    self._board.put_position(self.rank, self._own())
                    return

    def _own(self) -> Position:
        return replace(self.known[self.rank], seconds=time.monotonic() - self._moment)

    def _ask(self, rank: int) -> Position:
        if rank == self.rank:
            return self._own()
        said = None
        with contextlib.suppress(RuntimeError):
            said = self._board.get_position(rank)
        if said is not None and said.doing in LOST:
            return said
        if rank in self._near and self._near[rank].is_gone():
            return replace(said or self.known[rank], doing=Doing.GONE)
        if said is None and (self.known[rank].doing != Doing.ABSENT or self._has_come(rank)):
            return replace(self.known[rank], doing=Doing.SILENT, seconds=time.monotonic() - self._moment)
        return said or self.known[rank]

    def _has_come(self, rank: int) -> bool:
        with contextlib.suppress(RuntimeError):
            return self._board.get(CARD, rank) is not None
        return False
