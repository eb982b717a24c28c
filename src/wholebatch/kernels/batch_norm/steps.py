"""A training step by the compiled kernels in one call each way, or two where others share the mini-batch.

What :class:`wholebatch.kernels.batch_norm.native.Native` gives piece by piece, with the statistics in one tensor
``(3, C)``: mean, M2 and rstd. :mod:`wholebatch.direct` says why.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm.alone import Alone
from wholebatch.kernels.batch_norm.kernel import Affine, accumulation_dtype
from wholebatch.kernels.batch_norm.native import Native, address_of, hand_over, tell_moved, where
from wholebatch.kernels.place import place_of


class Steps(Native, Alone):
    """The compiled kernels, and whole steps by them."""

    def begin(self, z: Tensor) -> tuple[Tensor, int]:
        """``(statistics, count)`` of this part: ``(3, C)``, with mean and M2; rstd is left to :meth:`finish`."""
        z, place = place_of(z)
        statistics = torch.empty((3, place.c), dtype=accumulation_dtype(z.dtype))
        mean = statistics.data_ptr()
        self.native.batch_norm_moments(*where(z, place), mean, mean + place.c * statistics.element_size())
        return statistics, place.elements

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
            *where(z, place),
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
        tell_moved(running_mean, running_var)
        return y

    def find_sums(
        self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``(sums, dweight, dbias)``: :meth:`sums` from such statistics, and these in tensors of their own."""
        dweight, dbias = _gradients_like(affine)
        wanted = address_of(dweight), address_of(dbias)
        return self.sums_at(g, z, *_addresses(statistics), affine, *wanted), dweight, dbias

    def find_gradient(
        self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine, whole: Tensor, count: float
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`input_gradient` from such statistics; ``whole`` is contiguous."""
        return self.gradient_at(g, z, *_addresses(statistics), affine, whole.data_ptr(), count)

    def train_backward(
        self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine, count: float | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """``(dz, dresidual, dweight, dbias)`` from the statistics of :meth:`train`; None for an input that is None."""
        assert count is not None  # there are no masks here
        dweight, dbias = _gradients_like(affine)
        wanted = address_of(dweight), address_of(dbias)
        dz, dresidual = self.backward_at(g, z, *_addresses(statistics), affine, count, *wanted)
        return dz, dresidual, dweight, dbias


def _gradients_like(affine: Affine) -> tuple[Tensor | None, Tensor | None]:
    """Memory for those of weight and bias, each whole: views of one tensor could not be stored apart."""
    weight, bias = affine.weight, affine.bias
    return None if weight is None else torch.empty_like(weight), None if bias is None else torch.empty_like(bias)


def _addresses(statistics: Tensor) -> tuple[int, int]:
    """Of mean and of rstd."""
    mean = statistics.data_ptr()
    return mean, mean + 2 * statistics.shape[1] * statistics.element_size()
