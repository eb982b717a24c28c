"""Batch norm's kernels on a GPU, launched: the face of :class:`wholebatch.kernels.batch_norm.Kernel`, in Triton.

Nothing here waits for the device, but for a mask's count where a caller asks for it as a number. All memory comes from
torch's allocator, so that streams and captured graphs hold (a first call, which compiles, must come before a capture).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm.alone import Alone
from wholebatch.kernels.batch_norm.kernel import Affine
from wholebatch.kernels.batch_norm.native import tell_moved
from wholebatch.kernels.gpu import backward, forward
from wholebatch.kernels.gpu.launching import LINEAR, activation_of, launch
from wholebatch.kernels.gpu.masks import spread
from wholebatch.kernels.gpu.merging import merge_moments, merge_sums
from wholebatch.kernels.gpu.plan import LIMITS, Limits, Plan, make_plan
from wholebatch.kernels.place import Place, laid_as, place_of
from wholebatch.moments import Moments


class Triton(Alone):
    """See :class:`wholebatch.kernels.batch_norm.Kernel`. float32, bfloat16 and float16, with and without a mask.

    Inputs of other layouts than these are copied first: ``(N, C)``, contiguous ``(N, C, *)``, and channels last.

    Args:
        limits: of the tiles, which the order of sums depends on.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits

    def moments(self, z: Tensor, mask: Tensor | None) -> Moments:
        z, place = place_of(z)
        statistics = self._train(z, place, 0.0, Affine(mask=mask), None, None, 0.0, None)
        mean, m2 = statistics[0], statistics[1]
        return Moments(_count(place, statistics), mean, m2)

    def apply(self, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        z, place = place_of(z)
        y = torch.empty_like(z)
        if z.numel():
            self._normalise(z, place, mean.contiguous(), rstd.contiguous(), affine, y)
        return y

    def forward(self, z: Tensor, eps: float, affine: Affine) -> tuple[Tensor, Moments, Tensor]:
        y, statistics, count = self.train(z, eps, affine, None, None, 0.0)
        moments = Moments(float(statistics[3, 0]) if count is None else count, statistics[0], statistics[1])
        return y, moments, statistics[2]

    def train(
        self,
        z: Tensor,
        eps: float,
        affine: Affine,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> tuple[Tensor, Tensor, int | None]:
        z, place = place_of(z)
        y = torch.empty_like(z)
        statistics = self._train(z, place, eps, affine, running_mean, running_var, momentum, y)
        return y, statistics, None if affine.mask is not None else place.elements

    def sums(self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        z, place = place_of(z)
        sums = z.new_empty((2, z.shape[1]), dtype=torch.float32)
        self._find_sums(laid_as(g, z), z, place, mean, rstd, affine, sums[1], sums[0], None)
        return sums

    def input_gradient(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, sums: Tensor | None, count: float
    ) -> tuple[Tensor, Tensor | None]:
        z, place = place_of(z)
        dz = torch.empty_like(z)
        dresidual = torch.empty_like(z) if _changes(affine) else None
        second, first = (None, None) if sums is None else (sums[1].contiguous(), sums[0].contiguous())
        g = laid_as(g, z)
        self._differentiate(g, z, place, mean, rstd, affine, None, count, second, first, dz, dresidual)
        return dz, None if affine.residual is None else g if dresidual is None else dresidual

    def backward(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, count: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        sums = z.new_empty((2, z.shape[1]), dtype=torch.float32)
        dz, dresidual = self._backward(g, z, mean, rstd, affine, None, count, sums[1], sums[0])
        return dz, dresidual, sums

    def train_backward(
        self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine, count: float | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        dweight, dbias = torch.empty_like(statistics[0]), torch.empty_like(statistics[0])
        counts = statistics[3] if count is None else None
        dz, dresidual = self._backward(g, z, statistics[0], statistics[2], affine, counts, count or 0.0, dweight, dbias)
        return dz, dresidual, dweight, dbias

    def _train(
        self,
        z: Tensor,
        place: Place,
        eps: float,
        affine: Affine,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        y: Tensor | None,
    ) -> Tensor:
        """``(3, C)``: mean, M2, rstd; with a mask ``(4, C)``, and the count."""
        masked = affine.mask is not None
        statistics = z.new_empty((3 + masked, place.c), dtype=torch.float32)
        if not z.numel():
            statistics.zero_()
            statistics[2].fill_(max(eps, 0.0) ** -0.5 if eps else float("inf"))
            return statistics
        plan = self._plan(z, place, 1)
        moving = statistics, running_mean, running_var, eps, momentum
        mask = spread(affine.mask, z)
        if plan.whole:
            following = (None, None, None, 1.0, LINEAR) if y is None else _following(z, affine)
            residual, weight, bias, slope, activation = following
            launch(
                forward.train_whole,
                (plan.tiles,),
                plan.warps,
                z,
                *(z, y, residual, mask, weight, bias, *moving, slope, plan.n, *_tile(plan), activation),
            )
        else:
            parts = z.new_empty((plan.programs, 4, plan.c), dtype=torch.float32)
            grid = (plan.programs, plan.tiles)
            launch(forward.find_parts, grid, plan.warps, z, *(z, mask, parts, plan.steps, plan.n, *_tile(plan)))
            merge_moments(parts, *moving)
            if y is not None:
                self._normalise(z, place, statistics[0], statistics[2], affine, y)
        tell_moved(running_mean, running_var)
        return statistics

    def _normalise(self, z: Tensor, place: Place, mean: Tensor, rstd: Tensor, affine: Affine, y: Tensor) -> None:
        plan = self._plan(z, place, 1)
        residual, weight, bias, slope, activation = _following(z, affine)
        launch(
            forward.normalise,
            (plan.steps, plan.tiles),
            plan.warps,
            z,
            *(z, y, residual, spread(affine.mask, z), mean, rstd, weight, bias, slope, plan.steps, plan.n),
            *(*_tile(plan), activation),
        )

    def _backward(
        self,
        g: Tensor,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        affine: Affine,
        counts: Tensor | None,
        count: float,
        dweight: Tensor,
        dbias: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        z, place = place_of(z)
        g, dz = laid_as(g, z), torch.empty_like(z)
        dresidual = torch.empty_like(z) if _changes(affine) else None
        if z.numel() and self._plan(z, place, 2).whole:
            self._whole(g, z, place, mean, rstd, affine, counts, count, dweight, dbias, dz, dresidual)
        else:
            self._find_sums(g, z, place, mean, rstd, affine, dweight, dbias, dresidual)
            if dresidual is None:
                self._differentiate(g, z, place, mean, rstd, affine, counts, count, dweight, dbias, dz, None)
            else:  # dt is there by now: neither the residual nor g is read again
                linear = Affine(affine.weight, mask=affine.mask)
                self._differentiate(dresidual, z, place, mean, rstd, linear, counts, count, dweight, dbias, dz, None)
        return dz, None if affine.residual is None else g if dresidual is None else dresidual

    def _find_sums(
        self,
        g: Tensor,
        z: Tensor,
        place: Place,
        mean: Tensor,
        rstd: Tensor,
        affine: Affine,
        dweight: Tensor,
        dbias: Tensor,
        dresidual: Tensor | None,
    ) -> None:
        if not z.numel():
            dweight.zero_()
            dbias.zero_()
            return
        plan = self._plan(z, place, 2)
        if plan.whole:
            self._whole(g, z, place, mean, rstd, affine, None, 0.0, dweight, dbias, None, None)
            return
        residual, weight, bias, slope, activation = _following(z, affine)
        parts = z.new_empty((plan.programs, 2, plan.c), dtype=torch.float32)
        launch(
            backward.find_part_sums,
            (plan.programs, plan.tiles),
            plan.warps,
            z,
            *(g, z, residual, dresidual, spread(affine.mask, z), mean.contiguous(), rstd.contiguous()),
            *(weight, bias, parts, slope, plan.steps, plan.n, *_tile(plan), activation),
        )
        merge_sums(parts, dweight, dbias)

    def _whole(
        self,
        g: Tensor,
        z: Tensor,
        place: Place,
        mean: Tensor,
        rstd: Tensor,
        affine: Affine,
        counts: Tensor | None,
        count: float,
        dweight: Tensor,
        dbias: Tensor,
        dz: Tensor | None,
        dresidual: Tensor | None,
    ) -> None:
        plan = self._plan(z, place, 2)
        residual, weight, bias, slope, activation = _following(z, affine)
        launch(
            backward.differentiate_whole,
            (plan.tiles,),
            plan.warps,
            z,
            *(g, z, dz, residual, dresidual, spread(affine.mask, z), mean.contiguous(), rstd.contiguous()),
            *(weight, bias, counts, float(count), dweight, dbias, slope, plan.n, *_tile(plan), activation),
        )

    def _differentiate(
        self,
        g: Tensor,
        z: Tensor,
        place: Place,
        mean: Tensor,
        rstd: Tensor,
        affine: Affine,
        counts: Tensor | None,
        count: float,
        dweight: Tensor | None,
        dbias: Tensor | None,
        dz: Tensor,
        dresidual: Tensor | None,
    ) -> None:
        if not z.numel():
            return
        plan = self._plan(z, place, 2)
        residual, weight, bias, slope, activation = _following(z, affine)
        launch(
            backward.differentiate,
            (plan.steps, plan.tiles),
            plan.warps,
            z,
            *(g, z, dz, residual, dresidual, spread(affine.mask, z), mean.contiguous(), rstd.contiguous()),
            *(weight, bias, counts, float(count), dweight, dbias, slope, plan.steps, plan.n, *_tile(plan), activation),
        )

    def _plan(self, z: Tensor, place: Place, inputs: int) -> Plan:
        """``inputs``: tensors that a tile holds in registers at once."""
        return make_plan(place.n, place.c, place.length, z.element_size(), inputs, self.limits)


def _tile(plan: Plan) -> tuple[Any, ...]:
    """The kernels' arguments from ``c_units`` to ``WIDE``."""
    c_units, c_unit, length_units, length_unit = plan.units
    return c_units, length_units, c_unit, length_unit, plan.rows, plan.channels, plan.run, plan.wide


def _following(z: Tensor, affine: Affine) -> tuple[Tensor | None, Tensor | None, Tensor | None, float, int]:
    """``(residual, weight, bias, slope, activation)`` as the kernels take them."""
    residual = None if affine.residual is None else laid_as(affine.residual, z)
    weight = None if affine.weight is None else affine.weight.contiguous()
    bias = None if affine.bias is None else affine.bias.contiguous()
    return residual, weight, bias, float(affine.slope), activation_of(affine.slope)


def _changes(affine: Affine) -> bool:
    """Whether the residual's gradient is another tensor than the output's."""
    return affine.residual is not None and (affine.slope != 1 or affine.mask is not None)


def _count(place: Place, statistics: Tensor) -> float:
    return place.elements if statistics.shape[0] == 3 else float(statistics[3, 0]) if place.elements else 0
