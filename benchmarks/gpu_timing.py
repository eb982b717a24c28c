"""Times on a GPU: by events of its own, for the host runs ahead of it; launched one by one, or replayed as a graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

GIBI = 1 << 30
WARM = 3  # calls before a capture: kernels are compiled, and the allocator has what a step takes


class Clock(Protocol):
    """Times work on a device."""

    def seconds(self, run: Callable[[], object], times: int) -> float:
        """Seconds for each of so many calls, all work finished."""
        ...


class Events:
    """The device's own clock, between two events on the current stream."""

    def seconds(self, run: Callable[[], object], times: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / times


class Host:
    """The host's clock: for the CPU, on which the harness itself is tested."""

    def seconds(self, run: Callable[[], object], times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - begin) / times


def capture(step: Callable[[], object]) -> Callable[[], object]:
    """``step`` as a CUDA graph: all its launches in one, without Python between them."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy_bandwidth(clock: Clock, device: str, size: int = GIBI, rounds: int = 20) -> float:
    """Bytes per second that a copy within the device's memory moves, read and written: the median of ``rounds``."""
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    for _ in range(WARM):
        target.copy_(source)
    taken = sorted(clock.seconds(lambda: target.copy_(source), 1) for _ in range(rounds))
    return 2 * source.nbytes / taken[len(taken) // 2]
