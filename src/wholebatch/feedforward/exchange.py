"""What the compiled engine calls to tell other ranks something and to hear of theirs (native/exchange.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from wholebatch.sharing import Meeting
from wholebatch.sharing.header import pack
from wholebatch.sharing.processes import Processes
from wholebatch.sharing.reduction import Reduction

if TYPE_CHECKING:
    from wholebatch._native import Mailbox

_PHASES = ("forward", "backward", "gradients", "centre")  # of Exchange::At


class Exchange:
    """Between the ranks of ``processes``; ``names`` of the layers, for a diagnosis.

    Attributes:
        reduction: of the parts of weight gradients, where ranks do not see each other's; with the places of layers.
    """

    def __init__(self, processes: Processes, names: Sequence[str]) -> None:
        self._processes = processes
        self._meetings = [[Meeting(name, phase) for name in names] for phase in _PHASES]
        self._gathered = torch.empty(0)
        self.reduction: Reduction | None = None
        self.places: list[tuple[int, int]] = []

    def box(self) -> Mailbox | None:
        """The memory that the ranks meet in: the engine does by itself what would be done below."""
        return self._processes.mailbox()

    def header(self, at: int, layer: int, width: int) -> bytes:
        """What a meeting in that memory is called."""
        return pack(*self._meetings[at][layer], 1, width, torch.float64)

    def settle(self, status: int) -> None:
        """A meeting there did not come about at once."""
        self._processes.settle(status)

    def begin(self, at: int, layer: int, address: int, width: int) -> None:
        own = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_double)), (width,))
        self._processes.begin(torch.from_numpy(own), self._meetings[at][layer])

    def finish(self) -> int:
        self._gathered = self._processes.finish()
        return self._gathered.data_ptr()

    def send_parts(self, layer: int) -> None:
        assert self.reduction is not None
        self.reduction.send(*self.places[layer])

    def await_parts(self, layer: int) -> None:
        assert self.reduction is not None
        self.reduction.finish()  # layers are sent and awaited in the same order
