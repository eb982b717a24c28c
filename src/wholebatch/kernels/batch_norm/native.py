"""The compiled kernels (native/batch_norm.h): float32, float64 and bfloat16 on the CPU, without a mask."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm.kernel import Affine, accumulation_dtype
from wholebatch.kernels.batch_norm.outputs import outputs
from wholebatch.kernels.native import native_available, native_module
from wholebatch.kernels.place import Place, laid_as, place_of
from wholebatch.kernels.wish import wished
from wholebatch.moments import Moments

# As native/batch_norm_bindings.cpp numbers them.
STORAGES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}

_PLAIN = (Tensor, torch.nn.Parameter)


class Native:
    """See :class:`wholebatch.kernels.batch_norm.Kernel`. Inputs of other layouts than these are copied first:
    ``(N, C)``, contiguous ``(N, C, *)``, and channels last of any number of dimensions.
    """

    def __init__(self) -> None:
        self.native = load()
        self.outputs = outputs()

    def moments(self, z: Tensor, mask: Tensor | None) -> Moments:
        assert mask is None
        z, place = place_of(z)
        mean, m2 = _vectors(z, 2)
        self.native.batch_norm_moments(*where(z, place), mean.data_ptr(), m2.data_ptr())
        return Moments(place.elements, mean, m2)

    def apply(self, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        z, place = place_of(z)
        y = self.outputs.like(z)
        mean, rstd = mean.contiguous(), rstd.contiguous()
        held, given = hand_over(z, affine)
        self.native.batch_norm_apply(
            *where(z, place), *given, affine.slope, y.data_ptr(), address_of(mean), address_of(rstd)
        )
        del held
        return y

    def forward(self, z: Tensor, eps: float, affine: Affine) -> tuple[Tensor, Moments, Tensor]:
        y, statistics, count = self.train(z, eps, affine, None, None, 0.0)
        mean, m2, rstd = statistics.unbind()
        return y, Moments(count, mean, m2), rstd

    def train(
        self,
        z: Tensor,
        eps: float,
        affine: Affine,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> tuple[Tensor, Tensor, int]:
        """:meth:`forward` with its statistics in one ``(3, C)`` (mean, M2, rstd), and running statistics moved.

        Returns:
            ``(y, statistics, count)``.
        """
        z, place = place_of(z)
        y = self.outputs.like(z)
        statistics = torch.empty((3, place.c), dtype=accumulation_dtype(z.dtype))
        held, given = hand_over(z, affine)
        self.native.batch_norm_forward(
            *where(z, place),
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
        tell_moved(running_mean, running_var)
        return y, statistics, place.elements

    def sums(self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        mean, rstd = mean.contiguous(), rstd.contiguous()
        return self.sums_at(g, z, mean.data_ptr(), rstd.data_ptr(), affine, 0, 0)

    def sums_at(self, g: Tensor, z: Tensor, mean: int, rstd: int, affine: Affine, dweight: int, dbias: int) -> Tensor:
        """:meth:`sums` by addresses; they go to ``dweight`` and ``dbias`` too, where these are not 0."""
        z, place = place_of(z)
        g = laid_as(g, z, self.outputs.like)
        sums = torch.empty((2, place.c), dtype=accumulation_dtype(z.dtype))
        held, given = hand_over(z, affine)
        self.native.batch_norm_sums(
            *where(z, place), *given, affine.slope, g.data_ptr(), mean, rstd, sums.data_ptr(), dweight, dbias
        )
        del held
        return sums

    def input_gradient(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, sums: Tensor | None, count: float
    ) -> tuple[Tensor, Tensor | None]:
        mean, rstd = mean.contiguous(), rstd.contiguous()
        sums = None if sums is None else sums.contiguous()
        return self.gradient_at(g, z, mean.data_ptr(), rstd.data_ptr(), affine, address_of(sums), count)

    def backward(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, count: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        sums = torch.empty((2, z.shape[1]), dtype=accumulation_dtype(z.dtype))
        mean, rstd = mean.contiguous(), rstd.contiguous()
        dbias = sums.data_ptr()
        wanted = dbias + z.shape[1] * sums.element_size(), dbias
        dz, dresidual = self.backward_at(g, z, mean.data_ptr(), rstd.data_ptr(), affine, count, *wanted)
        return dz, dresidual, sums

    def backward_at(
        self, g: Tensor, z: Tensor, mean: int, rstd: int, affine: Affine, count: float, dweight: int, dbias: int
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`backward` by addresses; the sums go to ``dweight`` and ``dbias`` where these are not 0."""
        return self._differentiate(
            self.native.batch_norm_backward, g, z, mean, rstd, affine, (count,), (dweight, dbias)
        )

    def gradient_at(
        self, g: Tensor, z: Tensor, mean: int, rstd: int, affine: Affine, sums: int, count: float
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`input_gradient` by addresses."""
        return self._differentiate(self.native.batch_norm_input_gradient, g, z, mean, rstd, affine, (sums, count), ())

    def _differentiate(
        self,
        run: Callable[..., None],
        g: Tensor,
        z: Tensor,
        mean: int,
        rstd: int,
        affine: Affine,
        before: tuple[float, ...],
        after: tuple[int, ...],
    ) -> tuple[Tensor, Tensor | None]:
        """``before`` and ``after`` are ``run``'s arguments on either side of dz and dresidual."""
        z, place = place_of(z)
        g = laid_as(g, z, self.outputs.like)
        dz = self.outputs.like(z)
        dresidual = None if affine.residual is None else self.outputs.like(z)
        held, given = hand_over(z, affine)
        run(
            *where(z, place),
            *given,
            affine.slope,
            g.data_ptr(),
            mean,
            rstd,
            *before,
            dz.data_ptr(),
            address_of(dresidual),
            *after,
        )
        del held
        return dz, dresidual


def serves(z: Tensor, mask: Tensor | None) -> bool:
    """Whether the compiled kernels can take this input, and are to.

    Subclasses of tensors (FakeTensor, DTensor, a person's own) may have no memory at all, or give it another meaning.
    """
    return (
        type(z) in _PLAIN
        and mask is None
        and z.dtype in STORAGES
        and z.is_cpu
        and z.layout is torch.strided
        and is_enabled()
    )


@functools.cache
def is_enabled() -> bool:
    """Whether the compiled kernels are there, and ``WHOLEBATCH_KERNELS`` does not forbid them."""
    return wished() in ("", "native") and native_available(say=True)


@functools.cache
def load() -> ModuleType:
    """The compiled part, with torch's threads handed over to it.

    ``torch_parallel_for`` is part of torch's stable interface in C from version 2.10 on; before, one thread works.
    """
    native = native_module()
    torch_library = ctypes.CDLL(torch._C.__file__)  # a name is looked up in what it depends on, too
    addresses = []
    for name in ("torch_parallel_for", "torch_get_num_threads"):
        function = getattr(torch_library, name, None)
        addresses.append(0 if function is None else ctypes.cast(function, ctypes.c_void_p).value)
    native.use_threads(*addresses)
    return native


@functools.cache
def borrows() -> bool:
    """Whether the compiled part can look at torch's tensors itself (native/borrowed.h): from torch 2.9 on or so."""
    return load().use_exchange(Tensor, torch.nn.Parameter, getattr(Tensor, "__dlpack_c_exchange_api__", None))  # type: ignore[no-any-return]


def where(z: Tensor, place: Place) -> tuple[int, int, int, int, int]:
    """What every kernel is told of ``z``: how it is stored, its place, and its address."""
    return STORAGES[z.dtype], *place, z.data_ptr()


def _vectors(z: Tensor, count: int) -> tuple[Tensor, ...]:
    dtype, channels = accumulation_dtype(z.dtype), z.shape[1]
    return tuple(torch.empty(channels, dtype=dtype) for _ in range(count))


def tell_moved(running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Autograd has not seen that these were written to."""
    torch.autograd.graph.increment_version([x for x in (running_mean, running_var) if x is not None])


def address_of(x: Tensor | None) -> int:
    """Of the first element; 0: there is no such tensor, or it is empty.

    Raises:
        TypeError: it has elements and no memory, as distributed and fake tensors, which a kernel would take for absent.
    """
    return 0 if x is None else x.data_ptr() or _refuse_without_memory(x)


def _refuse_without_memory(x: Tensor) -> int:
    if x.numel() == 0:
        return 0
    raise TypeError(
        f"batch norm of a plain tensor was given a {type(x).__name__} {tuple(x.shape)}, which has no memory of its "
        "own: give plain tensors (a DTensor's full_tensor() or to_local()), or an input of that type as well"
    )


def hand_over(z: Tensor, affine: Affine) -> tuple[tuple[Tensor | None, ...], tuple[int, int, int]]:
    """The tensors, which must live as long as their addresses are used, and the addresses."""
    residual = None if affine.residual is None else laid_as(affine.residual, z, outputs().like)
    weight = None if affine.weight is None else affine.weight.contiguous()
    bias = None if affine.bias is None else affine.bias.contiguous()
    return (residual, weight, bias), (address_of(residual), address_of(weight), address_of(bias))
