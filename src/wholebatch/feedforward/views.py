"""A net's parameters and their optimizer state as NumPy arrays in place, for an engine that copies them every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from wholebatch.feedforward.module import Layer


@dataclass(frozen=True, slots=True)
class View:
    """One tensor, ``holder[key]``; ``array`` is its memory, None where it is not contiguous."""

    layer: int
    role: str
    form: str
    holder: Mapping[str, Tensor | None]
    key: str
    tensor: Tensor
    address: int
    array: np.ndarray | None

    @classmethod
    def of(
        cls, layer: int, role: str, form: str, holder: Mapping[str, Tensor | None], key: str, tensor: Tensor
    ) -> View:
        """The view of a tensor as it lies now."""
        array = tensor.detach().numpy() if tensor.is_contiguous() else None
        return cls(layer, role, form, holder, key, tensor, tensor.data_ptr(), array)

    def holds(self) -> bool:
        """Whether the tensor is still that one, and where it was: ``.data`` may have been given another memory."""
        return self.holder.get(self.key) is self.tensor and self.tensor.data_ptr() == self.address


class Views:
    """The views of all layers, made again where a tensor was replaced.

    Making one takes as long as a step of a small net; asking whether it holds, a tenth of that.
    """

    def __init__(self, parts: list[Layer], forms: Mapping[str, str]) -> None:
        self._parts, self._forms = parts, forms  # the optimizer's names of states, and the engine's
        self._state: Mapping[str, Tensor] = {}
        self._views: list[View] = []

    def of(self, state: Mapping[str, Tensor]) -> list[View]:
        """Of every parameter and what the optimizer keeps for it in ``state``, which has ``"<state>.<parameter>"``."""
        if not self._views or state is not self._state or not all(view.holds() for view in self._views):
            self._state, self._views = state, list(self._make(state))
        return self._views

    def _make(self, state: Mapping[str, Tensor]) -> Iterator[View]:
        for index, layer in enumerate(self._parts):
            for role, name, parameter in layer.parameters():
                module = layer.norm if role.startswith("norm_") else layer.linear
                assert module is not None
                yield View.of(index, role, "value", module._parameters, name.rpartition(".")[2], parameter)
                for kept, form in self._forms.items():
                    key = f"{kept}.{name}"
                    yield View.of(index, role, form, state, key, state[key])
