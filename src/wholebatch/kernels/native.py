"""Finding the compiled part, and saying once, with the remedy, where it is missing."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("wholebatch._native"), ""
    except ImportError as error:
        return None, str(error)


@functools.cache
def _say_missing() -> None:
    warnings.warn(
        "wholebatch runs on its torch reference, which is slower: the compiled part is missing "
        f"({_load()[1]}). Install a C++ compiler (Debian: apt install g++) and reinstall wholebatch",
        RuntimeWarning,
        stacklevel=4,
    )


def native_available(*, say: bool = False) -> bool:
    """Whether the compiled part is there; with ``say``, a missing one is said once per process."""
    found = _load()[0] is not None
    if say and not found:
        _say_missing()
    return found


def native_module() -> ModuleType:
    """The compiled part.

    Raises:
        ValueError: it was not built here.
    """
    module, why = _load()
    if module is None:
        raise ValueError(
            f"the native engine was not built ({why}): install a C++ compiler and reinstall wholebatch, "
            "or use engine='reference'"
        )
    return module


def product_unit(matmul_precision: str = "medium") -> str | None:
    """The processor's unit for products of bfloat16 numbers that runs here: ``amx``, ``avx512_bf16``, or None.

    Only where it is faster than products of float32 numbers: AMX is; AVX-512 BF16 is for ``"medium"`` on AMD's
    processors, but neither on Intel's nor for ``"high"``. ``WHOLEBATCH_PRODUCT_UNIT`` forces ``amx``, ``avx512_bf16``
    or ``none``, for tests and measurements.

    Raises:
        ValueError: the variable names a unit that is unknown, or that is not here; an unknown precision.
    """
    ask = getattr(_load()[0], "product_unit", None)
    unit: str | None = None if ask is None else ask(matmul_precision)
    return unit


@functools.cache
def say_no_product_unit() -> None:
    """Warn, once per process, that products asked for in bfloat16 are made of float32 numbers."""
    warnings.warn(
        "this processor has no unit for products of bfloat16 numbers that would be faster here (AMX, or for 'medium' "
        "AMD's AVX-512 BF16): the native engine's products are of float32 numbers, as with matmul_precision='highest'",
        RuntimeWarning,
        stacklevel=4,
    )


def instruction_set() -> str:
    """Which build of the kernels runs here: ``avx512``, ``avx2``, ``portable``, or ``none`` without a compiled part.

    ``WHOLEBATCH_INSTRUCTION_SET`` forces one of them, for tests and measurements.

    Raises:
        ValueError: the variable names a set that is unknown, or that this processor does not have.
    """
    if not native_available():
        return "none"
    name: str = native_module().instruction_set()
    return name
