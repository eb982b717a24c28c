"""How vectors get from each rank to all: what every way of it offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from wholebatch.sharing.diagnosis import Doing


class Transport(Protocol):
    """One meeting after the other, in the same order on all ranks.

    Each raises :class:`wholebatch.sharing.MeetingError` in place of waiting for a rank that will not come.
    """

    def exchange(self, header: bytes, count: float, vectors: tuple[Tensor, ...]) -> Tensor:
        """Give vectors of one dtype, and get those of all.

        Args:
            header: must be equal on all ranks.
            count: this rank's number of elements.
            vectors: one or two, of one dtype.

        Returns:
            ``(ranks, 1 + elements)`` float64: each rank's count, then its vectors one behind the other; zeros for a
            rank that stands by. Valid until the next call.
        """
        ...

    def stand_by(self) -> bool:
        """Take part in one meeting of the others with nothing, whatever it is. False: all ranks stand by."""
        ...

    def leave(self, doing: Doing, text: str) -> None:
        """Tell the others, who may be waiting, that this rank will not come any more, and why. Does not wait."""
        ...


class HostTransport(Transport, Protocol):
    """A transport of the host's memory or network, on which a rank can work while the others come."""

    def begin(self, header: bytes, vector: Tensor) -> None:
        """Post the own vector of a meeting, and go on. It stays as it is until :meth:`finish`, which comes next."""
        ...

    def finish(self) -> Tensor:
        """Wait for the others: what :meth:`exchange` returns, with counts of 0."""
        ...
