"""Linear and batch norm in one: the products of :mod:`wholebatch.kernels.gpu.products`, launched.

A chain of hidden layers stores its sums ``Z`` and nothing else. :class:`Normalised` is what a product reads in place of
``H``, :class:`Derived` what it reads in place of ``dZ``. Sums over rows have an order that depends on shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm.native import tell_moved
from wholebatch.kernels.gpu import products
from wholebatch.kernels.gpu.launching import LINEAR, activation_of, launch
from wholebatch.kernels.gpu.merging import merge_moments, merge_sums
from wholebatch.kernels.gpu.plan import cdiv


@dataclass(frozen=True)
class Tiles:
    """What a program multiplies at once.

    Attributes:
        rows, columns: of the tile that it writes.
        depth: of the sum, in one go.
        programs: how many should share a sum over rows, about: two for each multiprocessor of a card with 108 to 144.
        warps: of a program.
    """

    rows: int = 64
    columns: int = 64
    depth: int = 32
    programs: int = 256
    warps: int = 4


TILES = Tiles()


@dataclass(frozen=True)
class Normalised:
    """``activation(weight * (z - mean) * rstd + bias)``, which is formed where it is read.

    Attributes:
        z: ``(N, C)``, contiguous.
        statistics: ``(3, C)`` float32: mean, M2 and rstd.
        weight, bias: ``(C,)`` float32, or None.
        slope: of the activation below 0: 1 none, 0 ReLU.
    """

    z: Tensor
    statistics: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    slope: float = 1.0

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The kernels' ``mean, rstd, weight, bias, slope``."""
        return self.statistics[0], self.statistics[2], self.weight, self.bias, float(self.slope)

    @property
    def activation(self) -> int:
        return activation_of(self.slope)


@dataclass(frozen=True)
class Derived:
    """``dz = weight * rstd * (g - dbias / N - xhat * dweight / N)``, which is formed where it is read.

    Attributes:
        g: ``(N, C)``, the loss by what batch norm gave.
        of: that batch norm.
        dweight, dbias: ``(C,)`` float32, the two sums over all rows.
    """

    g: Tensor
    of: Normalised
    dweight: Tensor
    dbias: Tensor

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The kernels' arguments from ``g`` to ``count``."""
        of = self.of
        statistics = of.z, of.statistics[0], of.statistics[2], of.weight
        return self.g, *statistics, self.dbias, self.dweight, float(of.z.shape[0])


Inputs = Tensor | Normalised
Gradients = Tensor | Derived


def multiply(inputs: Inputs, w: Tensor, added: Tensor | None = None, tiles: Tiles = TILES) -> Tensor:
    """``H W^T + added``: ``(N, K)`` and ``(M, K)`` to ``(N, M)``."""
    return _multiply(inputs, w, added, None, tiles)


def multiply_for_norm(
    inputs: Inputs,
    w: Tensor,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.0,
    tiles: Tiles = TILES,
) -> tuple[Tensor, Tensor]:
    """``(H W^T, statistics)``: ``(3, M)`` float32, mean, M2 and rstd over its rows; running statistics are moved."""
    x = inputs.z if isinstance(inputs, Normalised) else inputs
    parts = x.new_empty((cdiv(x.shape[0], tiles.rows), 4, w.shape[0]), dtype=torch.float32)
    z = _multiply(inputs, w, None, parts, tiles)
    statistics = x.new_empty((3, w.shape[0]), dtype=torch.float32)
    merge_moments(parts, statistics, running_mean, running_var, float(eps), float(momentum))
    tell_moved(running_mean, running_var)
    return z, statistics


def multiply_back(
    gradients: Gradients, w: Tensor, into: Normalised, dweight: Tensor, dbias: Tensor, tiles: Tiles = TILES
) -> Derived:
    """``dZ W`` through the activation of ``into``, as its :class:`Derived`; the two sums are written to ``dweight`` and
    ``dbias`` ``(K,)``."""
    z, k = into.z, into.z.shape[1]
    g, given = _gradients(gradients)
    out = torch.empty_like(z)
    parts = z.new_empty((cdiv(z.shape[0], tiles.rows), 2, k), dtype=torch.float32)
    launch(
        products.multiply_back,
        (len(parts), cdiv(k, tiles.columns)),
        tiles.warps,
        z,
        *(*given, w, z, *into.arguments, out, parts, z.shape[0], g.shape[1], k),
        *(isinstance(gradients, Derived), into.activation, *_how(tiles, z.shape[0] * max(g.shape[1], k))),
        contracted=True,
    )
    merge_sums(parts, dweight, dbias)
    return Derived(out, into, dweight, dbias)


def multiply_across(gradients: Gradients, inputs: Inputs, out: Tensor, tiles: Tiles = TILES) -> None:
    """``dZ^T H`` ``(M, K)`` into ``out``: where many rows meet few weights, parts of the rows, added in their order."""
    g, given = _gradients(gradients)
    x, normalised, activation, of = _inputs(inputs)
    (rows, n), k = g.shape, x.shape[1]
    across, along = cdiv(n, tiles.rows), cdiv(k, tiles.columns)
    shares = max(1, min(tiles.programs // (across * along), cdiv(rows, 8 * tiles.depth)))
    share = cdiv(cdiv(rows, shares), tiles.depth) * tiles.depth
    shares = cdiv(rows, share)
    parts = out if shares == 1 else g.new_empty((shares, n, k), dtype=torch.float32)
    launch(
        products.multiply_across,
        (across, along, shares),
        tiles.warps,
        g,
        *(*given, x, *of, parts, share, rows, n, k, isinstance(gradients, Derived), normalised, activation),
        *_how(tiles, max(rows * max(n, k), shares * n * k)),
        contracted=True,
    )
    if shares > 1:
        out.copy_(parts.sum(0))


def _multiply(inputs: Inputs, w: Tensor, added: Tensor | None, parts: Tensor | None, tiles: Tiles) -> Tensor:
    x, normalised, activation, of = _inputs(inputs)
    (m, k), n = x.shape, w.shape[0]
    z = x.new_empty((m, n))
    launch(
        products.multiply,
        (cdiv(m, tiles.rows), cdiv(n, tiles.columns)),
        tiles.warps,
        x,
        *(x, *of, w, added, z, parts, m, k, n, normalised, activation, *_how(tiles, m * max(k, n))),
        contracted=True,
    )
    return z


def _inputs(inputs: Inputs) -> tuple[Tensor, bool, int, tuple[Any, ...]]:
    """``(x, NORMALISED, ACTIVATION, mean to slope)``."""
    if isinstance(inputs, Normalised):
        return inputs.z, True, inputs.activation, inputs.arguments
    return inputs, False, LINEAR, (None, None, None, None, 1.0)


def _gradients(gradients: Gradients) -> tuple[Tensor, tuple[Any, ...]]:
    """``(g, g to count)``."""
    if isinstance(gradients, Derived):
        return gradients.g, gradients.arguments
    return gradients, (gradients, None, None, None, None, None, None, 1.0)


def _how(tiles: Tiles, largest: int) -> tuple[Any, ...]:
    """The kernels' arguments from ``ROWS`` to ``PRECISION``: float32 is multiplied as float32, never as TF32."""
    return tiles.rows, tiles.columns, tiles.depth, largest >= 1 << 31, "ieee"
