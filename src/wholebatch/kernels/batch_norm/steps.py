"""A training step by the compiled kernels in one call each way, or two where others share the mini-batch.

What :class:`wholebatch.kernels.batch_norm.native.Native` gives piece by piece, with the statistics in one tensor
``(3, C)``: mean, M2 and rstd. :mod:`wholebatch.direct` says why.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm.kernel import Affine, accumulation_dtype
from wholebatch.kernels.batch_norm.native import Native, address_of, count_of, hand_over, laid_as, place_of


class Steps(Native):
    """The compiled kernels, and whole steps by them."""

    def train(
        self,
        z: Tensor,
        eps: float,
        affine: Affine,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> tuple[Tensor, Tensor, int]:
        """:meth:`forward`, with the statistics in one ``(3, C)`` (mean, M2, rstd), and running statistics moved.

        Returns:
            ``(y, statistics, count)``.
        """
        z, place = place_of(z)
        y = self.outputs.like(z)
        statistics = torch.empty((3, place[2]), dtype=accumulation_dtype(z.dtype))
        held, given = hand_over(z, affine)
        self.native.batch_norm_train(
            *place,
            z.data_ptr(),
            *given,
            affine.slope,
            y.data_ptr(),
            eps,
            statistics.data_ptr(),
            address_of(running_mean),
            address_of(running_var),
            momentum,
        )
        del held
        _tell_moved(running_mean, running_var)
        return y, statistics, count_of(place)

    def begin(self, z: Tensor) -> tuple[Tensor, int]:
        """``(statistics, count)`` of this part: ``(3, C)``, with mean and M2; rstd is left to :meth:`finish`."""
        z, place = place_of(z)
        statistics = torch.empty((3, place[2]), dtype=accumulation_dtype(z.dtype))
        mean = statistics.data_ptr()
        self.native.batch_norm_moments(*place, z.data_ptr(), mean, mean + place[2] * statistics.element_size())
        return statistics, count_of(place)

    def finish(
        self,
        z: Tensor,
        eps: float,
        affine: Affine,
        statistics: Tensor,
        count: float,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> Tensor:
        """``y`` by the whole mini-batch's mean and M2; rstd is written, and running statistics are moved."""
        z, place = place_of(z)
        y = self.outputs.like(z)
        held, given = hand_over(z, affine)
        self.native.batch_norm_finish(
            *place,
            z.data_ptr(),
            *given,
            affine.slope,
            y.data_ptr(),
            eps,
            statistics.data_ptr(),
            count,
            address_of(running_mean),
            address_of(running_var),
            momentum,
        )
        del held
        _tell_moved(running_mean, running_var)
        return y

    def find_sums(self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine) -> Tensor:
        """:meth:`sums` from such statistics."""
        z, place = place_of(z)
        g = laid_as(g, z)
        sums = torch.empty((2, place[2]), dtype=statistics.dtype)
        mean = statistics.data_ptr()
        rstd = mean + 2 * place[2] * statistics.element_size()
        held, given = hand_over(z, affine)
        self.native.batch_norm_sums(
            *place, z.data_ptr(), *given, affine.slope, g.data_ptr(), mean, rstd, sums.data_ptr()
        )
        del held
        return sums

    def find_gradient(
        self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine, whole: Tensor, count: float
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`input_gradient` from such statistics; ``whole`` is contiguous."""
        z, place = place_of(z)
        g = laid_as(g, z)
        dz = self.outputs.like(z)
        dresidual = None if affine.residual is None else self.outputs.like(z)
        mean = statistics.data_ptr()
        rstd = mean + 2 * place[2] * statistics.element_size()
        held, given = hand_over(z, affine)
        self.native.batch_norm_input_gradient(
            *place,
            z.data_ptr(),
            *given,
            affine.slope,
            g.data_ptr(),
            mean,
            rstd,
            whole.data_ptr(),
            count,
            dz.data_ptr(),
            address_of(dresidual),
        )
        del held
        return dz, dresidual

    def train_backward(
        self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """``(dz, dresidual, dweight, dbias)`` from the statistics of :meth:`train`; None for an input that is None."""
        z, place = place_of(z)
        g = laid_as(g, z)
        dz = self.outputs.like(z)
        dresidual = None if affine.residual is None else self.outputs.like(z)
        dweight = None if affine.weight is None else torch.empty_like(affine.weight)
        dbias = None if affine.bias is None else torch.empty_like(affine.bias)
        held, given = hand_over(z, affine)
        self.native.batch_norm_train_backward(
            *place,
            z.data_ptr(),
            *given,
            affine.slope,
            g.data_ptr(),
            statistics.data_ptr(),
            dz.data_ptr(),
            address_of(dresidual),
            address_of(dweight),
            address_of(dbias),
        )
        del held
        return dz, dresidual, dweight, dbias


def _tell_moved(running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Autograd has not seen that these were written to."""
    torch.autograd.graph.increment_version([x for x in (running_mean, running_var) if x is not None])
