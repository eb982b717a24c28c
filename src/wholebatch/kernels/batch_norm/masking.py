"""Elements that do not count."""

from __future__ import annotations

from torch import Tensor


def counted(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` where the mask is True (None: everywhere), else 0; a product with 0 would keep nan and inf."""
    return x if mask is None else x.where(mask, x.new_zeros(()))
