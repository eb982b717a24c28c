"""Times within a step: Python's clock on the CPU, the device's own events on an accelerator.

An accelerator runs behind Python, so a clock read in Python says when work was queued. An event is queued with the work
and says when the device came to it; the times are known only after the device was waited for at the end of the step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn


class Clock(Protocol):
    """Stamps, and the seconds between two of them."""

    def stamp(self) -> Any:
        """Now."""
        ...

    def settle(self) -> None:
        """Wait until all that was queued is done."""
        ...

    def between(self, start: Any, end: Any) -> float:
        """Seconds; to be asked after :meth:`settle`."""
        ...


class HostClock:
    """Where Python runs along with the work."""

    stamp = staticmethod(time.perf_counter)

    def settle(self) -> None:
        pass

    def between(self, start: float, end: float) -> float:
        return end - start


class DeviceClock:
    """Events in the current stream of an accelerator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stamp(self) -> torch.Event:
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        torch.accelerator.synchronize(self.device)

    def between(self, start: torch.Event, end: torch.Event) -> float:
        return float(start.elapsed_time(end)) / 1000  # milliseconds


def clock_of(device: torch.device) -> Clock:
    """The clock for work on ``device``."""
    return HostClock() if device.type == "cpu" else DeviceClock(device)


def device_of(models: Sequence[nn.Module]) -> torch.device:
    """Where ``models`` are: their first parameter or buffer, and the CPU where they have none."""
    tensors = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
