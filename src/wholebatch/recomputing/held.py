"""A tensor that hooks for saved tensors leave as it is, with the check that torch then no longer makes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, weakref_slot=True, eq=False)
class Held:
    """A saved tensor. ``version`` is torch's count of changes in place: with hooks torch no longer looks."""

    tensor: Tensor
    version: int

    def unpack(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: it was changed in place, as torch raises it.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor {tuple(self.tensor.shape)} {self.tensor.dtype} that backward needs was changed in place: it "
                f"was saved at version {self.version} and is at version {self.tensor._version}; clone it before the "
                "change, or change it out of place"
            )
        return self.tensor
