"""Products of operands that are rounded to bfloat16, in torch: what ``matmul_precision`` means, for the reference.

With ``r(x)`` the bfloat16 number nearest to x (to even where two are), which keeps 8 of float32's 24 bits::

    "medium"    A B  ->  r(A) r(B)
    "high"      A B  ->  Ah Bh + (Ah Bl + Al Bh)       Ah = r(A), Al = r(A - Ah), and so for B

Rounding takes at most 2^-8 of a number, and ``Ah + Al`` lacks at most 2^-16 of A; ``Al Bl``, which is left out, is no
more than 2^-16 of ``A B``. So a term ``a b`` of a sum is off by at most about 2^-7 of its size in "medium", and by
3 * 2^-16 in "high". Two numbers of 8 bits have a product of 16, which float32 holds exactly: all else that is rounded
is the sum, in float32, as in the processor's own instructions.

A linear layer has three products, and each of them is of rounded operands: ``Z = H W^T`` forward, ``dH = dZ W`` and
``dW = dZ^T H`` backward. The bias and its gradient are sums, which are not rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wholebatch.feedforward.settings import MatmulPrecision


def apply_linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: MatmulPrecision) -> Tensor:
    """``x W^T + b``, ``(N, in)`` to ``(N, out)``; its product and the two of backward are of this precision."""
    if precision == "highest":
        return F.linear(x, weight, bias)
    z: Tensor = _Rounded.apply(x, weight, precision)  # type: ignore[no-untyped-call]
    return z if bias is None else z + bias


def multiply(a: Tensor, b: Tensor, precision: MatmulPrecision) -> Tensor:
    """``A B`` of float32 matrices in this precision, in float32."""
    if precision == "highest":
        return a @ b
    a_high, b_high = round_to_bfloat16(a), round_to_bfloat16(b)
    if precision == "medium":
        return a_high @ b_high
    a_low, b_low = _rest(a, a_high), _rest(b, b_high)
    return a_high @ b_high + (a_high @ b_low + a_low @ b_high)


def round_to_bfloat16(x: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, as numbers of x's own dtype; inf and nan stay, and so do subnormal numbers."""
    return x.bfloat16().to(x.dtype)


def _rest(x: Tensor, high: Tensor) -> Tensor:
    """What rounding took, itself rounded; 0 where x is not finite, or became so (inf - inf would be nan)."""
    return round_to_bfloat16(torch.where(high.isfinite(), x - high, 0.0))


class _Rounded(torch.autograd.Function):
    """``x W^T`` whose backward products round their operands too: autograd's own would take the rounding for constant
    and multiply by what was rounded forward alone, not by a rounded gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, precision: MatmulPrecision) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.precision = precision
        return multiply(x, weight.T, precision)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dx = multiply(dz, weight, ctx.precision) if ctx.needs_input_grad[0] else None
        dweight = multiply(dz.T, x, ctx.precision) if ctx.needs_input_grad[1] else None
        return dx, dweight, None
