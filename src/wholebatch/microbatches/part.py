"""One part: the unchanged model on some rows of the mini-batch, in a greenlet that stops at each batch norm.

A greenlet is a stack of its own in the same thread. A switch takes 10 microseconds where threads take 60, and one part
runs at a time, in an order that does not vary.
"""

from __future__ import annotations

import contextvars
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from wholebatch.microbatches.buffers import Buffers
from wholebatch.microbatches.errors import Position
from wholebatch.microbatches.random import Random
from wholebatch.microbatches.store import Store
from wholebatch.microbatches.thread import ThreadState, list_hooks
from wholebatch.parts import PARTY, Arrival, Keep
from wholebatch.sharing.replay import count_call, count_open


class Part:
    """A :class:`wholebatch.parts.Party`. ``outside``: what torch keeps for the thread while no part runs.

    Attributes:
        index: its number, from 0.
        arrival: what it has brought to the batch norm at which it waits; None: it does not wait.
        ended: it has returned.
        result: what it returned.
    """

    def __init__(
        self,
        index: int,
        function: Callable[[], Any],
        random: Random,
        store: Store,
        buffers: Buffers,
        outside: ThreadState,
    ) -> None:
        self.index, self.ended, self.result = index, False, None
        self.arrival: Arrival | None = None
        self.keep: Keep = store.keep
        self.arrive, self.note_output = store.arrive, store.note_output
        self._function, self._random, self._store, self._buffers = function, random, store, buffers
        self._calls, self._last, self._failed, self._stopped = 0, ("", ""), False, False
        self._outside, self._state = outside, dataclasses.replace(outside)
        self._conductor = getcurrent()
        self._greenlet = greenlet(self._live, self._conductor)
        self._greenlet.gr_context = contextvars.copy_context()

    @property
    def position(self) -> Position:
        """Where it stands."""
        if self._failed:
            doing = "raised"
        elif self.ended:
            doing = "has returned"
        else:
            doing = "waits there" if self.arrival is not None else "has not begun"
        return Position(self.index, self._calls, *self._last, doing)

    def go_on(self, statistics: Tensor | None) -> None:
        """Run until the next batch norm or the end; from a batch norm with the ``(2, C)`` of the whole mini-batch.

        Raises:
            BaseException: what the part raises.
        """
        self._switch(lambda: self._greenlet.switch(statistics))

    def fail(self, error: BaseException) -> None:
        """Raise ``error`` where the part waits, so that it shows the line, and raise what comes of it."""
        self._stopped = True
        self._switch(lambda: self._greenlet.throw(error))
        raise error  # the part caught it

    def stop(self) -> None:
        """Unwind the part where it waits: its ``finally`` blocks run. What they raise is raised here."""
        self._stopped = True
        if self._greenlet:  # begun and not ended
            self._switch(self._greenlet.throw)

    def meet(self, arrival: Arrival, z: Tensor) -> Tensor:
        if self._stopped:
            raise GreenletExit
        dtype = str(z.dtype).removeprefix("torch.")
        self._calls, self._last = self._calls + 1, (arrival.call.layer, f"{tuple(z.shape)} {dtype}")
        self._refuse_recomputation()
        self.arrival = arrival
        self._store.put_aside(z, arrival.tokens)
        del arrival
        try:
            statistics: Tensor = self._conductor.switch()
        finally:
            self.arrival = None
            self._store.take_back()
        return statistics

    def count(self, counter: Tensor) -> None:
        if self.index == 0:
            self._buffers.note(counter)
            count_call(counter)

    def _live(self, _: None) -> None:
        PARTY.set(self)
        with self._store.saving():
            self.result = self._function()
            self._store.finish()
        self.ended = True

    def _switch(self, step: Callable[[], Any]) -> None:
        self._outside.leave(self._state)
        self._random.enter()
        try:
            step()
        except BaseException:
            self._failed = True
            raise
        finally:
            self._random.leave()
            self._state = ThreadState.take()
            self._state.leave(self._outside)

    def _refuse_recomputation(self) -> None:
        """Raise inside of a checkpoint whose recomputation would find a batch norm's part alone."""
        checkpoints = sum(is_checkpoint(pack) for pack, _ in list_hooks())
        frame = None if torch.is_grad_enabled() else sys._getframe()
        while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
            frame = frame.f_back
        if frame is not None or checkpoints > count_open():
            raise ValueError(
                f"{self._last[0]} of part {self.index} is inside of a checkpoint that would recompute it in "
                "backward, where the part is alone and cannot meet the others: use checkpoint(f, x, "
                "use_reentrant=False, context_fn=wholebatch.replay), which takes the statistics of the first pass"
            )


def is_checkpoint(pack: Callable[[Tensor], Any]) -> bool:
    """Whether a hook for saved tensors is torch.utils.checkpoint's."""
    return pack.__module__ == "torch.utils.checkpoint" and "_checkpoint_hook" in getattr(pack, "__qualname__", "")
