"""The GPU's kernels for tests: on a card where there is one, else in Triton's interpreter (see ``conftest.py``).

The interpreter takes some 20 milliseconds for a program, so tensors are small here, and tiles of the second set of
limits are smaller still: what takes three launches, several programs and several tiles for each is looked at in them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernel_inputs import fill, make_affine
from wholebatch.kernels.batch_norm import Affine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytest.importorskip("triton", reason="Triton is missing here: pip install 'wholebatch[gpu]'")

from triton import language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from wholebatch.kernels.gpu.kernel import Triton  # noqa: E402
from wholebatch.kernels.gpu.plan import Limits  # noqa: E402

_convert = interpreter._convert_float


def _convert_float(x: Any, given: Any, wanted: Any, rounding: Any) -> Any:
    """As a card does it. The interpreter of Triton 3.9 cuts float32 off to bfloat16 in place of rounding it, and takes
    bfloat16's smallest numbers for 0."""
    if given is tl.bfloat16 and wanted is tl.float32:
        return np.array(x).view(np.uint16).astype(np.uint32) << 16
    if given is tl.float32 and wanted is tl.bfloat16:
        return torch.from_numpy(np.array(x)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return _convert(x, given, wanted, rounding)


interpreter._convert_float = _convert_float

_dot = interpreter.InterpreterBuilder.create_dot


def _create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """Products of bfloat16 numbers, which the interpreter of Triton 3.9 takes for whole numbers: here of the float32
    numbers that they are, as a card's units multiply them, exactly."""
    return _dot(self, *(_as_float32(x) if x.dtype is tl.bfloat16 else x for x in (a, b)), *rest)


def _as_float32(x: Any) -> Any:
    wide = _convert_float(x.data, tl.bfloat16, tl.float32, None).view(np.float32)
    return interpreter.TensorHandle(wide, tl.float32)


interpreter.InterpreterBuilder.create_dot = _create_dot

_ready: set[str] = set()


def _call(self: Any, *arguments: Any, **keywords: Any) -> Any:
    """A function called by a kernel. The interpreter looks through Triton's language again at every such call, which
    takes most of its time: once for each module is enough, as nothing undoes it."""
    if self.fn.__module__ not in _ready:
        interpreter._patch_lang(self.fn)
        _ready.add(self.fn.__module__)
    return self.rewrite()(*arguments, **keywords)


interpreter.InterpretedFunction.__call__ = _call

# NumPy, which the interpreter computes with, warns where a card computes infinities without a word.
quiet = pytest.mark.filterwarnings("ignore:.* encountered.*:RuntimeWarning")

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES]
KERNELS = {"whole": Triton(), "split": Triton(Limits(whole=0, tile=512, programs=3))}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def draw(shape: tuple[int, ...], dtype: torch.dtype, *, last: bool = False, seed: int = 0, mean: float = 2) -> Tensor:
    """As :func:`tests.kernel_inputs.fill`, on the device."""
    x = fill(shape, dtype, last=last, seed=seed, mean=mean)
    return x.to(DEVICE)


def affine_for(z: Tensor, slope: float, residual: bool, *, weights: bool = True, mask: Tensor | None = None) -> Affine:
    """As :func:`tests.kernel_inputs.make_affine`, on the device."""
    made = make_affine(z.cpu(), slope, residual, weights=weights, mask=mask)
    return Affine(*(x.to(DEVICE) if isinstance(x, Tensor) else x for x in made))
