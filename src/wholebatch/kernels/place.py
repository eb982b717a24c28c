"""How a tensor lies in memory, as the kernels see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """``(n, c, length)`` in memory: of ``(N, C)`` and channels last ``length`` is 1, and every position is a row."""

    n: int
    c: int
    length: int

    @property
    def elements(self) -> int:
        """Elements of a channel."""
        return self.n * self.length


def place_of(z: Tensor) -> tuple[Tensor, Place]:
    """``z``, copied where its layout is none of those that are served, and where it is."""
    shape = z.shape
    channels = shape[1]
    if z.is_contiguous():
        inner = 1
        for extent in shape[2:]:
            inner *= extent
        if channels == 1:  # one plane is as good as many
            return z, Place(1, 1, shape[0] * inner)
        return z, Place(shape[0], channels, inner)
    if z.dim() > 2 and z.movedim(1, -1).is_contiguous():
        return z, Place(z.numel() // channels, channels, 1)
    return place_of(z.contiguous())


def laid_as(x: Tensor, z: Tensor, like: Callable[[Tensor], Tensor] = torch.empty_like) -> Tensor:
    """``x`` with its elements in memory as those of ``z`` are; a copy is what ``like(z)`` gives, filled."""
    if x.stride() == z.stride() or (x.is_contiguous() and z.is_contiguous()):
        return x
    return like(z).copy_(x)
