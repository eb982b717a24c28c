"""The single layers that are measured, and the bytes that one moves at least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.problem import Sent

if TYPE_CHECKING:
    import torch

# Of inputs, outputs and their gradients in a stack: so much, or nearly, unless a layer is very small.
STACK_BYTES = 256 << 20
FEWEST, MOST = 2, 32
NORMS = ("batch", "batch+relu", "batch+add+relu")
DTYPES = {"float32": 4, "bfloat16": 2}  # bytes of an element
ROWS, PLANES, CHANNELS_LAST = "rows", "channels_first", "channels_last"
# By the name on the command line.
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "64x20": ((64, 20), ROWS),
    "4096x256": ((4096, 256), ROWS),
    "65536x64": ((65536, 64), ROWS),
    "32x64x56x56": ((32, 64, 56, 56), PLANES),
    "32x64x56x56-last": ((32, 64, 56, 56), CHANNELS_LAST),
    "8x256x28x28": ((8, 256, 28, 28), PLANES),
}


@dataclass(frozen=True)
class Case(Sent):
    """A layer, what follows its norm, and its input ``(N, C, *)``.

    Attributes:
        name: of the shape, among :data:`SHAPES`.
        dtype: of inputs and outputs; parameters and statistics are float32.
        norm: ``batch``, ``batch+relu`` or ``batch+add+relu``, where a residual is added before the activation.
        threads: of the process.
    """

    name: str
    dtype: str
    norm: str
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, *)``."""
        return SHAPES[self.name][0]

    @property
    def layout(self) -> str:
        """``rows`` for ``(N, C)``, else where the channels are in memory."""
        return SHAPES[self.name][1]

    @property
    def adds(self) -> bool:
        """Whether a residual is added."""
        return "add" in self.norm

    @property
    def rises(self) -> bool:
        """Whether a ReLU follows."""
        return "relu" in self.norm

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the input; of the output, their gradients and the residual too."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    @property
    def sweeps(self) -> tuple[int, int]:
        """How many times a tensor is read or written at least, forward and backward, where no cache holds one.

        Forward z for the moments, z again, y. Backward z and dy for the two sums, both again, dz; what a ReLU let
        through is told by z. With a residual forward reads it too; backward reads z, dy and the residual and writes the
        residual's gradient, and then needs only that and z for dz.
        """
        return (4, 7) if self.adds else (3, 5)

    @property
    def least_bytes(self) -> int:
        """Bytes of the sweeps."""
        return sum(self.sweeps) * self.tensor_bytes

    @property
    def layers(self) -> int:
        """Layers of the stack that is timed: enough for it not to stay in a cache, see :class:`Stack`."""
        return max(FEWEST, min(MOST, STACK_BYTES // (4 * self.tensor_bytes)))

    @property
    def memory_bound(self) -> bool:
        """Whether its stack is larger than the caches are: beyond 128 MiB, which no processor it was run on has."""
        return 4 * self.tensor_bytes * self.layers > STACK_BYTES // 2

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}, {self.norm}"

    def make_tensors(self, seed: int) -> list[torch.Tensor]:
        """One tensor of standard normal numbers for each layer of the stack."""
        import torch

        form = torch.channels_last if self.layout == CHANNELS_LAST else torch.contiguous_format
        generator = torch.Generator().manual_seed(seed)
        # Filled in place: a larger temporary tensor would teach the allocator to keep more memory than the layer does.
        return [
            torch.empty(self.shape, dtype=getattr(torch, self.dtype), memory_format=form).normal_(generator=generator)
            for _ in range(self.layers)
        ]
