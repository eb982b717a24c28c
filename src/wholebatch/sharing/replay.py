"""Activation checkpointing that passes each batch norm once: the recomputation replays the first pass's statistics.

A checkpoint runs a function twice, once forward and again in backward for what it did not keep. Run twice as it is,
a batch-norm layer moves its running statistics twice and, where processes share the mini-batch, meets them twice.
So the first pass records the whole mini-batch's moments of each call, and a recomputation takes them from there::

    first pass          call 1 -> moments 1      call 2 -> moments 2      ...       recorded in order
    recomputation       call 1 <- moments 1      call 2 <- moments 2      ...       no meeting, nothing is moved

The record belongs to the checkpoint and not to the layers, which may be used twice or in several checkpoints at once.
What is open stands on a stack of frames, one for each thread (and each context: a frame never shows in another task)::

    checkpoint(f)                                        [record f]
      checkpoint(g) inside f                             [record f, record g]         both write
    backward: f is recomputed, and runs checkpoint(g)    [replay f, record g']        f's moments, which g' writes
    backward: g is recomputed                            [replay g]                   g's moments

The innermost frame that replays answers. Frames below it see nothing of it, for a recomputation inside a first pass (a
gradient taken in the function) is no part of that pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from wholebatch.moments import Moments

P = ParamSpec("P")
R = TypeVar("R")
Context = AbstractContextManager[Any]


class _Entry(NamedTuple):
    """One call of batch norm in a first pass; ``moments`` None: evaluation, which finds none."""

    layer: str
    shape: tuple[int, ...]
    moments: Moments | None

    def __str__(self) -> str:
        mode = "evaluation" if self.moments is None else "training"
        return f"{self.layer} on {self.shape} in {mode}"


@dataclass(slots=True)
class _Record:
    """The calls of one first pass, in order. ``complete``: that pass has ended."""

    entries: list[_Entry] = field(default_factory=list)
    complete: bool = False


class _Frame:
    """A pass that is under way. ``composed``: another context of the person's sees its operations."""

    __slots__ = ("composed", "opened", "position", "record", "replays")
    opened: Context

    def __init__(self, record: _Record, replays: bool, composed: bool) -> None:
        self.record, self.replays, self.composed, self.position = record, replays, composed, 0

    def next(self, layer: str, shape: tuple[int, ...], training: bool) -> Moments | None:
        """The moments of the recorded call that this one is; None for evaluation."""
        entries = self.record.entries
        if self.position == len(entries) and not self.record.complete:
            return None  # recomputed within its own first pass, beyond where that has come
        now = f"{layer} on {shape} in {'training' if training else 'evaluation'}"
        if self.position == len(entries):
            raise _differs(f"the recomputation calls {now} after the {len(entries)} batch norms of the first pass")
        entry = entries[self.position]
        if (layer, shape, training) != (entry.layer, entry.shape, entry.moments is not None):
            raise _differs(f"its batch norm {self.position + 1} was {entry} in the first pass and is {now} now")
        self.position += 1
        return entry.moments

    def end(self) -> None:
        """After a recomputation that ran to its end: it must have come by all that was recorded."""
        missed = self.record.entries[self.position :]
        if self.replays and missed and self.record.complete:
            raise _differs(f"the recomputation ends before {missed[0]}, its batch norm {self.position + 1} of before")


def _differs(what: str) -> ValueError:
    return ValueError(
        f"a checkpointed function differs from its first pass: {what}. Both have to call the same layers in the same "
        "order and mode: take what changes in between (a counter, a random choice that is not torch's, model.eval() "
        "before backward) out of the function"
    )


_FRAMES: ContextVar[tuple[_Frame, ...]] = ContextVar("wholebatch.replay", default=())


class _Pass:
    """Context of one pass of a checkpoint: can be entered again, for each backward of a retained graph is one."""

    def __init__(self, record: _Record, replays: bool, around: Context | None) -> None:
        self.record, self.replays, self.around = record, replays, around

    def __enter__(self) -> None:
        opened = self._open()
        opened.__enter__()
        _FRAMES.get()[-1].opened = opened

    def __exit__(self, *raised: Any) -> bool | None:
        frame = _FRAMES.get()[-1]
        assert frame.record is self.record, "contexts of checkpoints are left in the reverse order"
        return frame.opened.__exit__(*raised)

    @contextmanager
    def _open(self) -> Iterator[None]:
        below, frame = _FRAMES.get(), _Frame(self.record, self.replays, self.around is not None)
        with self.around or nullcontext():
            _FRAMES.set((*below, frame))
            try:
                yield
            finally:
                _FRAMES.set(below)
                self.record.complete |= not self.replays
            # Not after an exception: by one a checkpoint stops its recomputation as soon as it has all it needs.
            frame.end()


def replay(context_fn: Callable[[], tuple[Context, Context]] | None = None) -> tuple[Context, Context]:
    """The ``context_fn`` of a checkpoint whose batch norms move their running statistics once, and meet once.

    ::

        y = checkpoint(block, x, use_reentrant=False, context_fn=wholebatch.replay)

    Running statistics and gradients are as without the checkpoint. What replays is C numbers a layer and call.
    Layers may be used several times, checkpoints nested, and graphs retained; the function has to call the same layers
    in the same order both times. To combine it with another ``context_fn``, such as selective checkpointing::

        select = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])
        y = checkpoint(block, x, use_reentrant=False, context_fn=functools.partial(wholebatch.replay, select))

    Selective checkpointing does not see inside batch norm, which is recomputed from its input. Where torch.compile
    compiles the checkpoint with all that is in it, nothing is recorded: its graph moves running statistics once by
    itself, and may meet twice. With ``use_reentrant=True``: :func:`replayed`.

    Args:
        context_fn: another one, whose contexts are entered around these.

    Returns:
        The contexts of the first pass and of the recomputation.

    Raises:
        ValueError: (by the recomputation) the function differs from its first pass: which call, and what it was. (By
            batch norm) it was compiled by itself, and cannot see the checkpoint.
    """
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:  # it is being compiled
        return (context_fn or functools.partial(create_selective_checkpoint_contexts, []))()
    first, again = (None, None) if context_fn is None else context_fn()
    record = _Record()
    return _Pass(record, False, first), _Pass(record, True, again)


def replayed(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` for one checkpoint that takes no ``context_fn``: one with ``use_reentrant=True``.

    ::

        y = checkpoint(wholebatch.replayed(block), x, use_reentrant=True)

    The first call records, every later one replays, see :func:`replay`. Each call of ``checkpoint`` needs a wrapper of
    its own: after the first call this one can only be called by a recomputation, that is, during a backward pass. The
    graph may be retained and passed backward again. A function whose first call raised is to be wrapped anew.

    Raises:
        ValueError: (by the call) a second call outside of a backward pass; a recomputation that differs.
    """
    first, again = replay()
    called = False

    @functools.wraps(function)
    def replaying_function(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal called
        if called and torch._C._current_graph_task_id() == -1:
            raise ValueError(
                "a function from wholebatch.replayed is called a second time outside of a backward pass: it serves one "
                "checkpoint; wrap it for each, as in checkpoint(wholebatch.replayed(f), x, use_reentrant=True)"
            )
        context, called = again if called else first, True
        with context:
            return function(*args, **kwargs)

    return replaying_function


class Visit:
    """A call of batch norm inside of checkpoints that replay; the context of what it does besides applying.

    Attributes:
        moments: those that the first pass found; None: there are none, find them.
        replays: this is a recomputation: running statistics have been moved.
    """

    __slots__ = ("_composed", "_layer", "_shape", "_training", "_writers", "moments", "replays")

    def __init__(self, frames: tuple[_Frame, ...], layer: str, shape: tuple[int, ...], training: bool) -> None:
        self._layer, self._shape, self._training = layer, shape, training
        self.moments: Moments | None = None
        self.replays = False
        self._writers = []
        for frame in reversed(frames):
            if frame.replays:
                self.moments, self.replays = frame.next(layer, shape, training), True
                break
            self._writers.append(frame.record)

    def record(self, moments: Moments | None) -> None:
        """Write down what the call found, or was given; None in evaluation."""
        if not self._writers:
            return
        kept = None
        if self._training:
            assert moments is not None
            # A graph of theirs, which forward mode makes, would hold the checkpoint that holds the record.
            kept = Moments(moments.count, moments.mean.detach(), moments.m2.detach())
        for record in self._writers:
            record.entries.append(_Entry(self._layer, self._shape, kept))


def attend(layer: str, shape: tuple[int, ...], training: bool) -> Visit | None:
    """What the open checkpoints have to say about this call of batch norm; None: there are none.

    Raises:
        ValueError: it is not what the first pass called here.
    """
    frames = _FRAMES.get()
    return Visit(frames, layer, tuple(shape), training) if frames else None


def refuse_compiled(layer: str) -> None:
    """Raise where a compiled batch norm runs in an open checkpoint: it would move running statistics in both passes.

    Raises:
        ValueError: a checkpoint is open.
    """
    if _FRAMES.get():
        raise ValueError(
            f"{layer} is in a block that torch.compile compiled, inside a checkpoint with wholebatch.replay that was "
            "not: a compiled block cannot replay. Compile a function that has the checkpoint in it, or leave the "
            "block uncompiled"
        )


def count_open() -> int:
    """How many checkpoints that replay are open here, one inside of the other."""
    return len(_FRAMES.get())


def count_call(counter: Tensor) -> None:
    """Add 1 to a layer's counter of calls, which a recomputation leaves as it is."""
    if torch.compiler.is_compiling() or not (frames := _FRAMES.get()):
        counter.add_(1)
    elif not any(frame.replays for frame in frames):
        with unseen():
            counter.add_(1)


def unseen() -> Context:
    """Context in which selective checkpointing sees no operation, if there is any here.

    It finds what it kept by counting operations of a kind. A recomputation of batch norm has fewer of them than the
    first pass, so that it would count wrongly and hand out another operation's result.
    """
    if torch.compiler.is_compiling() or not any(frame.composed for frame in _FRAMES.get()):
        return nullcontext()
    return _disable_current_modes()
