"""The modes of memory, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import nn

from wholebatch.microbatches.parking import Lot, Parking
from wholebatch.microbatches.recipes import Recipes
from wholebatch.microbatches.store import InPlace, Store
from wholebatch.microbatches.trees import list_tensors

Offload = Literal["none", "cpu", "recompute"]


def store_maker(offload: Offload, model: Callable[..., Any], parts: Sequence[Any]) -> Callable[[], Store]:
    """What makes each part's store.

    Raises:
        ValueError: an unknown mode.
    """
    if offload not in get_args(Offload):
        raise ValueError(f"offload is {offload!r}; it must be one of {', '.join(map(repr, get_args(Offload)))}")
    if offload == "none":
        return InPlace
    if offload == "recompute":
        return Recipes
    tensors = list_tensors(parts)
    if isinstance(model, nn.Module):
        tensors += model.parameters()
    lot = Lot(device_only=any(x.device.type != "cpu" for x in tensors))
    return lambda: Parking(lot)
