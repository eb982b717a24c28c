"""A part's connection to whoever takes the parts of a mini-batch in turn, and what it brings to a meeting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from wholebatch.batch_norm import Call
from wholebatch.sharing.replay import count_call as count_call_alone

Keep = Callable[[Tensor], Callable[[], Tensor]]


class Run:
    """One run of all parts. ``ended``: they have come to their end; before that there is no whole to differentiate."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False


class Joint:
    """One meeting, as the nodes of all parts know it. ``spent``: the backward pass that released its graph."""

    __slots__ = ("run", "spent")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.spent: int | None = None

    def check(self) -> None:
        """Raise where a backward pass cannot be that of the whole mini-batch.

        Raises:
            RuntimeError: from inside of a part, twice over a released graph, or to be differentiated again.
        """
        if not self.run.ended:
            raise RuntimeError(
                "backward() was called inside of one part while the others have not come to their end: a batch norm's "
                "gradient needs all parts. Return the loss of each part, and call sum(losses).backward() after lockstep"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True: what lockstep did can be differentiated once, and this asks for a second "
                "derivative; take it over the undivided mini-batch"
            )
        task = torch._C._current_graph_task_id()
        if self.spent is not None and self.spent != task:
            raise RuntimeError(
                "backward() is called a second time through parts in lockstep, and the first one has released the "
                "graph of all of them. One backward serves all parts: add up their losses, sum(losses).backward(); "
                "(retain_graph=True in all but the last call gives the same gradients, each at the cost of the whole)"
            )
        if not torch._C._autograd._get_current_graph_task_keep_graph():  # type: ignore[attr-defined]
            self.spent = task


@dataclass(slots=True)
class Arrival:
    """A part at a batch norm: what it brings to the meeting.

    Attributes:
        call: what is to be done; ``call.moments`` are set to those of the whole mini-batch by the meeting.
        tokens: ``(2, C)``, mean and M2 of this part, as autograd knows them.
        count: elements per channel in this part.
        shape: of this part's input.
        identity: what stands for the layer: the same object in all parts, or None where there is none.
        running_mean, running_var, momentum: to be moved by the meeting; None: not.
        grad: whether the part records for autograd.
        joint: set by the meeting.
    """

    call: Call
    tokens: Tensor
    count: float
    shape: torch.Size
    identity: object
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float | Tensor
    grad: bool
    joint: Joint | None = None


class Party(Protocol):
    """A part's connection to whoever takes the parts in turn."""

    keep: Keep

    def arrive(self) -> Callable[[], None] | None:
        """Come to a batch norm; backward calls what is returned when it has come back to it."""
        ...

    def note_output(self, y: Tensor, apply: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> None:
        """The batch norm's output, and that it is ``apply(*inputs)``."""
        ...

    def meet(self, arrival: Arrival, z: Tensor) -> Tensor:
        """Wait for all parts; ``(2, C)``: mean and rstd of the whole mini-batch. ``z`` may be put aside meanwhile."""
        ...

    def count(self, counter: Tensor) -> None:
        """Add 1 to a layer's counter of calls, once for all parts."""
        ...


PARTY: ContextVar[Party | None] = ContextVar("wholebatch.parts", default=None)

# While parts run and the compiler is loaded: batch_norm and count_call, kept out of graphs, which cannot wait. What was
# compiled while this was empty is compiled again, for the compiler watches what it has read.
UNCOMPILED: list[Callable[..., Any]] = []


def count_call(counter: Tensor) -> None:
    """Add 1 to a layer's counter of calls: once for all parts, and not in a checkpoint's recomputation."""
    if torch.compiler.is_compiling():
        (UNCOMPILED[1] if UNCOMPILED else count_call_alone)(counter)
        return
    party = PARTY.get()
    if party is None:
        count_call_alone(counter)
    else:
        party.count(counter)
