"""What a kernel has beside :class:`wholebatch.kernels.batch_norm.kernel.Kernel` where :mod:`wholebatch.direct` uses
it: a whole training step of one worker's in a call each way."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from wholebatch.kernels.batch_norm.kernel import Affine


class Alone(ABC):
    """The two calls. Statistics are ``(3, C)``: mean, M2, rstd; of a kernel that takes masks ``(4, C)`` with one, the
    last the count of what it leaves, which only the device knows."""

    @abstractmethod
    def train(
        self,
        z: Tensor,
        eps: float,
        affine: Affine,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> tuple[Tensor, Tensor, int | None]:
        """``(y, statistics, count)``, running statistics moved; a count of None is in the statistics."""

    @abstractmethod
    def train_backward(
        self, g: Tensor, z: Tensor, statistics: Tensor, affine: Affine, count: float | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """``(dz, dresidual, dweight, dbias)`` from the statistics and the count of :meth:`train`."""
