"""The group's notice board, in the store that ``torch.distributed`` keeps for it: what ranks tell without a meeting.

Each rank puts its card there as it comes to the first meeting. Whoever finds the group in trouble sounds the alarm;
each rank then writes where it stands.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store

from wholebatch.sharing.diagnosis import Doing, Position
from wholebatch.sharing.header import Header

_ALARM = "alarm"
_POLL = 0.002  # seconds between two looks at the store
_MOST_WAIT = 30.0  # seconds for an answer of the store; the group's own timeout where that is shorter


class _Question(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    answers: SimpleQueue[tuple[Any, Exception | None]]


def _answer(asked: SimpleQueue[_Question | None]) -> None:
    """In a thread of its own: where the network is cut, a call of torch's store never comes back."""
    while (question := asked.get()) is not None:
        try:
            question.answers.put((question.function(*question.arguments), None))
        except Exception as error:
            question.answers.put((None, error))


class Board:
    """Notices of each rank, as JSON. Where the store's process is gone, calls raise RuntimeError, as torch does."""

    def __init__(self, store: Store) -> None:
        # A connection of its own: the person's thread may sit in a wait on theirs, and holds it while it does.
        with contextlib.suppress(RuntimeError, AttributeError, NotImplementedError):
            store = store.clone()  # type: ignore[attr-defined]
        self.store = PrefixStore("wholebatch", store)
        self.gone = False  # the store's process; torch logs a stack trace for each further call
        self._patience = min(_MOST_WAIT, store.timeout.total_seconds())  # type: ignore[attr-defined]
        self._asked: SimpleQueue[_Question | None] = SimpleQueue()
        threading.Thread(target=_answer, args=(self._asked,), name="wholebatch board", daemon=True).start()
        weakref.finalize(self, self._asked.put, None)

    def put(self, kind: str, rank: int, notice: Any) -> None:
        """Replace a rank's notice of this kind."""
        self._call(self.store.set, f"{kind}/{rank}", json.dumps(notice))

    def get(self, kind: str, rank: int) -> Any:
        """A rank's notice of this kind, or None."""
        key = f"{kind}/{rank}"
        return json.loads(self._call(self.store.get, key)) if self._call(self.store.check, [key]) else None

    def wait(self, kind: str, ranks: list[int], seconds: float) -> bool:
        """Whether all of these ranks have put a notice of this kind, waiting so long for it."""
        keys = [f"{kind}/{rank}" for rank in ranks]
        deadline = time.monotonic() + seconds
        # Not by the store's own wait: torch prints warnings when that comes to its time.
        while not (found := bool(self._call(self.store.check, keys))) and time.monotonic() < deadline:
            time.sleep(_POLL)
        return found

    def sound(self) -> None:
        """Ask every rank to say where it stands."""
        self._call(self.store.set, _ALARM, "1")

    def sounds(self) -> bool:
        """Whether somebody has sounded the alarm."""
        return bool(self._call(self.store.check, [_ALARM]))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.gone:
            raise RuntimeError("the store of the process group is gone")
        answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        self._asked.put(_Question(function, arguments, answers))
        try:
            answer, error = answers.get(timeout=self._patience)
        except Empty:
            error = RuntimeError(f"the store of the process group gave no answer within {self._patience:g} s")
        if error is None:
            return answer
        self.gone = True
        raise error

    def put_position(self, rank: int, position: Position) -> None:
        """Say where this rank stands."""
        header = position.header
        notice = [int(position.doing), position.number, position.seconds, position.text, position.pid]
        if header is not None:
            dtype = str(header.dtype).removeprefix("torch.")
            notice += [header.layer, header.phase, header.vectors, header.channels, dtype]
        self.put("position", rank, notice)

    def get_position(self, rank: int) -> Position | None:
        """Where a rank says it stands; None: it has said nothing."""
        notice = self.get("position", rank)
        if notice is None:
            return None
        doing, number, seconds, text, pid, *rest = notice
        header = None
        if rest:
            layer, phase, vectors, channels, dtype = rest
            header = Header(layer, phase, vectors, channels, getattr(torch, dtype))
        return Position(Doing(doing), number, seconds, header, text, pid)
