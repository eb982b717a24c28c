"""Who shares the mini-batch: the two things that workers do together at a batch-norm layer, whoever they are."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from wholebatch.moments import Moments


class Meeting(NamedTuple):
    """Which meeting this is, so that a disagreement can be told by name.

    Attributes:
        layer: its name, as ``model.named_modules()`` has it where that is known.
        phase: ``forward``, ``backward`` or ``double backward``.
    """

    layer: str
    phase: str


@runtime_checkable
class Sharing(Protocol):
    """Workers that hold parts of one mini-batch. Every worker of it calls the same methods in the same order.

    Vectors are ``(C,)`` or ``(k, C)``, on the worker's device, in the accumulation dtype (float32 or float64). A worker
    with no examples takes part with count 0 and zeros.
    """

    def merge(self, moments: Moments, meeting: Meeting) -> Moments:
        """The moments of all parts together, the same bits on every worker."""
        ...

    def sum(self, vectors: Tensor, meeting: Meeting) -> Tensor:
        """The sum over all parts, the same bits on every worker."""
        ...
