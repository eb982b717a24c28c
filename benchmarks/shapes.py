"""The shapes that are measured, and what a training step of one costs at least: operations and bytes.

Counted for float32, plain SGD, hidden layers of Linear and ReLU; a norm's arithmetic is not counted, so a fraction of
the peak is one of useful matrix work.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

ITEM = 4  # bytes of a float32


@dataclass(frozen=True)
class Shape:
    """``batch`` rows through layers of ``sizes``: the input, each hidden layer, the output."""

    name: str
    batch: int
    sizes: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Elements of all weight matrices."""
        return sum(a * b for a, b in pairwise(self.sizes))

    @property
    def flops(self) -> int:
        """Operations of the step's matrix products, ``2 * batch * (3 * sum in*out - in_0*out_0)``.

        Forward, the gradient of the weights and the gradient of the input are one product each of 2 * batch * in * out
        operations; the table itself needs no gradient, hence the first layer's third product is not there.
        """
        return 2 * self.batch * (3 * self.weights - self.sizes[0] * self.sizes[1])

    @property
    def least_bytes(self) -> int:
        """Bytes that the step must move where nothing but a block of rows stays in cache.

        Six sweeps over each hidden layer's ``batch x width`` (Z written in the forward pass and read by the next
        layer; in the backward pass Z read and the gradient written for it, both read for the weights' gradient), the
        table's rows read twice (forward, gradient of the first weights), the output written, turned into its gradient
        and read twice, the weights read and written once.
        """
        hidden = sum(self.sizes[1:-1])
        rows = 6 * hidden + 2 * self.sizes[0] + 4 * self.sizes[-1]
        return ITEM * (self.batch * rows + 2 * self.weights)

    def __str__(self) -> str:
        return f"{self.batch} x [{', '.join(map(str, self.sizes))}]"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("A", 64, (20, 20, 20, 20, 10)),
        Shape("B", 64, (784, 100, 100, 100, 10)),
        Shape("C", 256, (784, 256, 256, 256, 10)),
        Shape("D", 4096, (256, 256, 256, 256, 10)),
        Shape("E", 4096, (1024, 1024, 1024, 1024, 10)),
        Shape("F", 65536, (64, 64, 64, 64, 10)),
    )
}
