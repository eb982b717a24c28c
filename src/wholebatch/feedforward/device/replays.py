"""A step as one CUDA graph: launched with a single call, where Python would take longer than the card.

The first steps of each size of mini-batch run one operation at a time, on a stream beside the main one: they compile
kernels, open libraries and take memory, none of which a capture allows. They are steps like any other. The next one is
captured and from then on replayed. On the CPU every step runs as the first ones do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch

WARM = 3  # steps of a size before its capture, as torch's own recipes have it


class Replays:
    """The graphs of one engine's steps.

    Args:
        device: of the steps.
        graphs: capture and replay; False, or ``WHOLEBATCH_CUDA_GRAPHS=0`` in the environment: never.
    """

    def __init__(self, device: torch.device, *, graphs: bool = True) -> None:
        self._on_gpu = device.type == "cuda"
        self.enabled = self._on_gpu and graphs and os.environ.get("WHOLEBATCH_CUDA_GRAPHS", "1") != "0"
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def forget(self) -> None:
        """What graphs read lies elsewhere now."""
        self._graphs.clear()
        self._seen.clear()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work within is on a stream of its own, which a capture needs; what comes after waits for it."""
        if not self._on_gpu:
            yield
            return
        with torch.cuda.device(self._device):
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(stream):
                    yield
            finally:
                torch.cuda.current_stream().wait_stream(stream)

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """``step()``, or what was captured of it under ``key``."""
        graph = self._graphs.get(key)
        if graph is None and self.enabled and self._seen.get(key, 0) >= WARM:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                step()
            self._graphs[key] = graph
        if graph is not None:
            graph.replay()
            return
        self._seen[key] = self._seen.get(key, 0) + 1
        step()


class Pace:
    """Keeps the host from running far ahead of the device, so that Ctrl-C is answered and progress is of now.

    Every ``EACH`` steps an event is recorded, and the one before the last is waited for: the device always has work.
    """

    EACH = 8

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        self._on_gpu = device.type == "cuda"

    def tick(self, step: int) -> None:
        """Step ``step``, from 0, was launched."""
        if not self._on_gpu or step % self.EACH:
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)
        if len(self._events) > 2:
            self._events.pop(0).synchronize()
