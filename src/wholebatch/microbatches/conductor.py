"""Takes the parts through the model in turn: each to its next batch norm, then all over it together.

::

    round 1   part 0 ──▶ batch norm 1   part 1 ──▶ batch norm 1   …   they meet: statistics of the whole mini-batch
    round 2   part 0 ──▶ batch norm 2   part 1 ──▶ batch norm 2   …   they meet
    …
    last      part 0 ──▶ its result     part 1 ──▶ its result     …
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wholebatch.functional import batch_norm
from wholebatch.microbatches.buffers import Buffers
from wholebatch.microbatches.errors import explain
from wholebatch.microbatches.part import Part
from wholebatch.microbatches.random import parted
from wholebatch.microbatches.store import Store
from wholebatch.microbatches.thread import ThreadState
from wholebatch.parts import PARTY, UNCOMPILED, Arrival, Run, count_call, unite

_ORDER = (
    "every part has to pass the same batch norms in the same order; look for a branch that depends on a part's rows or "
    "its size, or that keeps count of calls"
)


@contextmanager
def conduct(
    functions: Sequence[Callable[[], Any]], make_store: Callable[[], Store], watched: bool
) -> Iterator[list[Any]]:
    """Context with the results of all functions, run in lockstep. Raising in it undoes what they moved, too.

    Args:
        functions: one for each part.
        make_store: makes each part's store.
        watched: the stores watch operations, which compiled code would hide.

    Raises:
        LockstepError: they do not pass the same batch norms in the same order.
        RuntimeError: this is called inside of a part.
        BaseException: what a part raises, with a note of which part it was.
    """
    if PARTY.get() is not None:
        raise RuntimeError(
            "lockstep inside of a part in lockstep: the outer one makes the mini-batch whole already, so call the "
            "model there as it is"
        )
    buffers, run = Buffers(), Run()
    try:
        with parted(len(functions)) as randoms, _uncompiled(watched):
            outside = ThreadState.take()
            parts = [
                Part(index, function, random, make_store(), buffers, outside)
                for index, (function, random) in enumerate(zip(functions, randoms, strict=True))
            ]
            _take_in_turn(parts, run, buffers)
        run.ended = True
        yield [part.result for part in parts]
    except BaseException:
        buffers.undo()
        raise


def _take_in_turn(parts: Sequence[Part], run: Run, buffers: Buffers) -> None:
    statistics: Tensor | None = None
    part = None
    try:
        while True:
            for part in parts:
                part.go_on(statistics)
            if all(part.ended for part in parts):
                return
            part = None
            statistics = _meet(parts, run, buffers)
    except BaseException as error:
        if part is not None:
            error.add_note(f"(raised in part {part.index} of {len(parts)} in lockstep; the others were unwound)")
        _stop(parts, error)
        raise


def _meet(parts: Sequence[Part], run: Run, buffers: Buffers) -> Tensor:
    arrivals = [part.arrival for part in parts if part.arrival is not None]
    cause = _disagreement(parts, arrivals)
    if cause:
        raise explain(cause, [part.position for part in parts], _ORDER)
    try:
        statistics = unite(arrivals, run)
        buffers.move(arrivals[0])
    except Exception as error:
        parts[0].fail(error)
    return statistics


def _disagreement(parts: Sequence[Part], arrivals: Sequence[Arrival]) -> str:
    """In what the parts differ; empty: in nothing."""
    ended = [part.index for part in parts if part.ended]
    if ended:
        return f"{_numbers(ended)} returned, and others wait at one more batch norm"
    first = arrivals[0]
    for name, find in _MUST_AGREE:
        different = [part.index for part, other in zip(parts, arrivals, strict=True) if find(other) != find(first)]
        if different:
            return f"{_numbers(different)} came with a different {name} than part 0"
    return ""


_MUST_AGREE: tuple[tuple[str, Callable[[Arrival], object]], ...] = (
    ("layer", lambda arrival: (arrival.call.layer, id(arrival.identity))),
    ("number of channels", lambda arrival: arrival.tokens.shape[1]),
    ("dtype", lambda arrival: arrival.tokens.dtype),
    ("device", lambda arrival: arrival.tokens.device),
    ("eps or process group", lambda arrival: (arrival.call.eps, id(arrival.call.sharing))),
)


def _numbers(parts: Sequence[int]) -> str:
    return f"part{'s' if len(parts) > 1 else ''} {', '.join(map(str, parts))}"


def _stop(parts: Sequence[Part], error: BaseException) -> None:
    for part in reversed(parts):
        try:
            part.stop()
        except BaseException as another:  # of a finally block: the first error is what is to be told
            error.add_note(f"(unwinding part {part.index} raised {type(another).__name__}: {another})")


@contextmanager
def _uncompiled(watched: bool) -> Iterator[None]:
    """Context in which compiled code leaves its graph for a batch norm; or none is run where operations are watched."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    if watched:  # not even what has been compiled before: what it changes in place would not be seen
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    from torch._dynamo import disable

    UNCOMPILED.extend(map(disable, (batch_norm, count_call)))
    try:
        yield
    finally:
        del UNCOMPILED[-2:]
