"""Where a part's tensors are while they wait for backward, or the part for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor


class Store(Protocol):
    """What becomes of one part's tensors."""

    def keep(self, x: Tensor) -> Callable[[], Tensor]:
        """Hold ``x`` for a later node of the same backward pass, which gets it from the function returned."""
        ...

    def saving(self) -> AbstractContextManager[Any]:
        """Context of the part: what autograd saves in it."""
        ...

    def arrive(self) -> Callable[[], None] | None:
        """A section of the part ends, and the next begins; backward calls what is returned when it leaves that one."""
        ...

    def note_output(self, y: Tensor, apply: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> None:
        """The first tensor of a section, and that it is ``apply(*inputs)``."""
        ...

    def put_aside(self, z: Tensor, tokens: Tensor) -> None:
        """The part stops at a batch norm with input ``z``; the meeting reads ``tokens``."""
        ...

    def take_back(self) -> None:
        """The part goes on."""
        ...

    def finish(self) -> None:
        """The part ends."""
        ...


class InPlace:
    """``offload="none"``: all stays where it is."""

    def keep(self, x: Tensor) -> Callable[[], Tensor]:
        return lambda: x

    def saving(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def arrive(self) -> None: ...

    def note_output(self, y: Tensor, apply: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> None: ...

    def put_aside(self, z: Tensor, tokens: Tensor) -> None: ...

    def take_back(self) -> None: ...

    def finish(self) -> None: ...
