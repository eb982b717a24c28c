"""The floor: as many plain vectorised sweeps as a layer needs at least, over outputs allocated as a layer's are.

No arithmetic of a norm is done: a sum reads a tensor, a dot product two; a copy reads one, an addition two, and write a
new one.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.layer_cases import Case as Problem
from benchmarks.systems import Trainer
from benchmarks.systems.layers.eager import load

__all__ = ["Problem", "load", "make"]


class Sweeps:
    """The sweeps of :meth:`benchmarks.layer_cases.Case.sweeps`, in the order of :class:`Stack`."""

    note = ""

    def __init__(self, case: Problem) -> None:
        # Seen as float32 throughout, which torch's own loops are fastest on: the bytes are what counts. Two bfloat16
        # are one float32 of about the size of the second, so never a denormal or nan.
        self.inputs, self.gradients, self.residuals = (
            [_bytes_of(tensor) for tensor in case.make_tensors(seed)] if seed < 2 or case.adds else []
            for seed in range(3)
        )

    def run(self, steps: int) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(steps):
                self.step()
        return time.perf_counter() - start

    def step(self) -> None:
        """Forward through all layers, then backward."""
        outputs = []
        for i, z in enumerate(self.inputs):
            z.sum()
            outputs.append(z + self.residuals[i] if self.residuals else z.clone())
        for i in reversed(range(len(self.inputs))):
            z, dy = self.inputs[i], self.gradients[i]
            if self.residuals:
                torch.dot(z, self.residuals[i])
                kept = dy.clone()  # the residual's gradient, as the ReLU cut it
                new = z + kept
                del kept
            else:
                torch.dot(z, dy)
                new = z + dy
            del new
            outputs.pop()


def _bytes_of(tensor: Tensor) -> Tensor:
    """Its memory in order, whatever the layout, as float32 ``(elements,)``."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,)).view(torch.float32)


def make(case: Problem) -> Trainer:
    """The sweeps on so many threads."""
    torch.set_num_threads(case.threads)
    return Sweeps(case)
