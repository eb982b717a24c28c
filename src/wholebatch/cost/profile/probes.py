"""What stands around each normalisation layer while a step is measured.

Forward: hooks before and after the layer's call. Backward: not torch's full backward hooks, which put a node of their
own around the layer and then refuse what changes its output in place (``nn.ReLU(inplace=True)``). Instead, hooks on the
layer's own nodes in the graph of derivatives, which change nothing in it: those reachable from the output that were
made since the layer was entered, as their sequence numbers say. Accumulation into parameters' gradients, where data
parallelism hooks in its communication, is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from wholebatch.cost.profile.clock import Clock
from wholebatch.cost.profile.norms import Norm
from wholebatch.sharing.watch import watching

_BEYOND = 2**63  # sequence numbers of accumulations
_sequence_number = torch._C._autograd._get_sequence_nr  # type: ignore[attr-defined]


@dataclass
class Visit:
    """A layer in one step.

    Attributes:
        shape, dtype: of the first call's input.
        calls: of its forward.
        forward_bytes, backward_bytes: see :class:`wholebatch.cost.profile.record.Layer`.
        forward, backward: seconds; backward None: no derivative passed.
    """

    shape: list[int] = field(default_factory=list)
    dtype: str = ""
    calls: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0
    forward: float = 0.0
    backward: float | None = None


@dataclass(frozen=True)
class Stay:
    """This rank's stay in a meeting: with whom, at which layer (-1: at none that is known), and seconds."""

    ranks: tuple[int, ...]
    layer: int
    seconds: float


class _Probe:
    """One layer's stamps of one step."""

    def __init__(self) -> None:
        self.visit = Visit()
        self.forward: list[tuple[Any, Any]] = []
        self.backward: list[tuple[Any, Any]] = []
        self.open: list[tuple[int, Any]] = []
        self.owed = 0  # bytes of this call's backward pass, if it gets one


class Probes:
    """Probes on ``norms``; between :meth:`attach` and :meth:`detach` every call of them is seen.

    Attributes:
        surveying: look at shapes and bytes, too; switched off it spares time in the steps that count.
        compiled: a call was seen from inside a compiler.
        entangled: while surveying, a layer was entered again before it was left.
    """

    def __init__(self, norms: Sequence[Norm], clock: Clock) -> None:
        self.norms, self.clock = norms, clock
        self.compiled = self.entangled = False
        self.surveying = True
        self._probes = [_Probe() for _ in norms]
        self._handles: list[RemovableHandle] = []
        self._watch = ExitStack()
        self._current = -1
        self._stays: list[Stay] = []

    def attach(self) -> None:
        """Put the hooks there, innermost of all."""
        for place, norm in enumerate(self.norms):
            before, after = self._enter(place), self._leave(place)
            self._handles.append(norm.module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(norm.module.register_forward_hook(after, prepend=True))
        self._watch.enter_context(watching(self._see))

    def detach(self) -> None:
        """Take them away; the modules are as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watch.close()

    def begin(self) -> None:
        """A step begins."""
        self._probes = [_Probe() for _ in self.norms]
        self._current, self._stays = -1, []

    def end(self) -> tuple[list[Visit], list[Stay]]:
        """What was seen since; the clock must have settled."""
        between = self.clock.between
        for probe in self._probes:
            probe.visit.forward = sum(between(*pair) for pair in probe.forward)
            if probe.backward:
                probe.visit.backward = sum(between(*pair) for pair in probe.backward)
        return [probe.visit for probe in self._probes], self._stays

    def _enter(self, place: int) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: tuple[Any, ...], more: dict[str, Any] | None = None) -> None:
            if torch.compiler.is_compiling():
                self.compiled = True
                return
            probe = self._probes[place]
            probe.visit.calls += 1
            if self.surveying:
                self._survey(probe, inputs, more or {})
            self._current = place
            probe.open.append((_sequence_number(), self.clock.stamp()))

        return enter

    def _leave(self, place: int) -> Callable[..., None]:
        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            end = self.clock.stamp()
            probe = self._probes[place]
            if not probe.open:
                return
            number, start = probe.open.pop()
            probe.forward.append((start, end))
            self._current = -1
            outputs = (output,) if isinstance(output, Tensor) else tuple(_tensors(output))
            owed = []
            if self.surveying:
                written = sum(y.nbytes for y in outputs)
                probe.visit.forward_bytes += written
                owed = [probe.owed + written]
            for node in _own_nodes(outputs, number):
                self._watch_node(place, node, owed)

        return leave

    def _survey(self, probe: _Probe, inputs: tuple[Any, ...], more: dict[str, Any]) -> None:
        self.entangled |= bool(probe.open)
        x = next(_tensors((*inputs, *more.values())), None)
        if x is None:
            return
        if not probe.visit.shape:
            probe.visit.shape, probe.visit.dtype = list(x.shape), str(x.dtype).removeprefix("torch.")
        probe.visit.forward_bytes += x.nbytes
        probe.owed = x.nbytes * (2 if x.requires_grad else 1)

    def _watch_node(self, place: int, node: Node, owed: list[int]) -> None:
        """``owed``: bytes to be counted by the first node that runs; an output changed in place leaves out the last."""
        probe, stamp = self._probes[place], self.clock.stamp
        started: list[Any] = []

        def before(_: Any) -> None:
            self._current = place
            if owed:
                probe.visit.backward_bytes += owed.pop()
            started.append(stamp())

        def after(_: Any, __: Any) -> None:
            probe.backward.append((started.pop(), stamp()))
            self._current = -1

        node.register_prehook(before)
        node.register_hook(after)

    def _see(self, ranks: tuple[int, ...], header: bytes, seconds: float) -> None:
        self._stays.append(Stay(ranks, self._current, seconds))


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor)) if isinstance(values, tuple | list) else iter(())


def _own_nodes(outputs: Sequence[Tensor], number: int) -> list[Node]:
    """The nodes that lead back from ``outputs``, as far as they were made since sequence number ``number``."""
    waiting = [y.grad_fn for y in outputs]
    found: dict[Node, None] = {}
    while waiting:
        node = waiting.pop()
        if node is None or node in found or not number <= node._sequence_nr() < _BEYOND:  # type: ignore[attr-defined]
            continue
        found[node] = None
        waiting.extend(after for after, _ in node.next_functions)
    return list(found)
