"""What is measured, as plain values that go through a pipe as JSON: the same for every system."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

# The table is larger than a mini-batch, so that no system meets the same rows at every step: 64 mini-batches where they
# fit in TABLE_BYTES, at least 4.
TABLE_BYTES = 64 << 20


class Sent:
    """A dataclass whose plain values go to a worker as JSON."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From parsed JSON."""
        return cls(**values)


@dataclass(frozen=True)
class Problem(Sent):
    """A net, its mini-batch and its optimizer."""

    batch: int
    sizes: tuple[int, ...]
    norm: str  # batch, layer, none
    optimizer: str  # sgd, adam
    threads: int
    precision: str = field(default="highest", kw_only=True)  # of the products: highest, high, medium

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From parsed JSON, where a tuple became a list."""
        return super().of({**values, "sizes": tuple(values["sizes"])})

    @property
    def learning_rate(self) -> float:
        """So small that a measurement's steps neither diverge nor learn the table by heart (gradients of almost 0)."""
        return 1e-3 if self.optimizer == "sgd" else 1e-5

    @property
    def batches(self) -> int:
        """Mini-batches in the table."""
        return min(64, max(4, TABLE_BYTES // (4 * self.batch * self.sizes[0])))

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """``(rows, in)`` float32 standard normal, and ``(rows,)`` int64 random classes; the same in every process."""
        import numpy as np

        random = np.random.default_rng(0)
        rows = self.batch * self.batches
        x = random.standard_normal((rows, self.sizes[0]), dtype=np.float32)
        return x, random.integers(0, self.sizes[-1], rows)


@dataclass(frozen=True)
class SharingProblem(Sent):
    """``(rows, channels)`` float32 on each rank. ``kind``: ``local``, ``shared`` or ``all_gather``."""

    rows: int
    channels: int
    kind: str


@dataclass(frozen=True)
class SpreadProblem(Problem):
    """A net whose mini-batch is spread over ranks, as many as ``threads``; ``sync`` and ``overlap`` as of Spread."""

    sync: str = "all"
    overlap: bool = True
