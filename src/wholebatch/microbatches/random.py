"""What a part draws does not depend on the other parts: each has random states of its own.

Part ``p`` draws what the model would draw after ``torch.manual_seed(seed + p)``, where ``seed`` is one number drawn
from torch's generator for the CPU, ``torch.randint(2**62, ())``, when the parts begin. After them that generator goes
on behind this number, whatever they drew. Python's ``random`` and NumPy have one state for all parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor


class Random:
    """The random states of one part; ``enter`` and ``leave`` take turns."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: list[Tensor] = []

    def enter(self) -> None:
        """Make torch's generators draw for this part."""
        for number, generator in enumerate(_generators()):
            if number < len(self._states):
                generator.set_state(self._states[number])
            else:
                generator.manual_seed(self._seed)

    def leave(self) -> None:
        """Note how far it has come."""
        self._states = [generator.get_state() for generator in _generators()]


@contextmanager
def parted(parts: int) -> Iterator[list[Random]]:
    """Context with random states for so many parts; torch's own are brought back after it."""
    seed = int(torch.randint(2**62, ()))
    outside = [(generator, generator.get_state()) for generator in _generators()]
    try:
        yield [Random(seed + part) for part in range(parts)]
    finally:
        for generator, state in outside:
            generator.set_state(state)


def _generators() -> list[Generator]:
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators
    return generators
