"""A model in two forms, as it is and with its batch norms converted, to be changed from one to the other in no time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from wholebatch.conversion import convert, revert
from wholebatch.cost.profile.norms import Norm

# Members that are changed inside rather than replaced.
_NESTED = frozenset(
    {
        "_modules",
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
    }
)
_ABSENT = object()

SHARED = (
    "The layers normalise over all ranks together, and torch.nn's over each rank alone, with other results: the "
    "difference is the price of sharing."
)
_State = tuple[type[nn.Module], dict[str, Any]]


class Change:
    """What :func:`wholebatch.convert` does to models; of models that are converted already, :func:`wholebatch.revert`.

    It is done once and undone at once, and what differs is kept: class and members of each module that changed, none of
    which are tensors. So both forms share parameters and running statistics, and the model is itself again afterwards.

    Attributes:
        way: ``convert`` or ``revert``.
        layers: the normalisation layers that change.
        notes: what convert or revert warned of.
    """

    way: Literal["convert", "revert"]

    def __init__(self, models: Sequence[nn.Module], norms: Sequence[Norm]) -> None:
        modules = list(dict.fromkeys(module for model in models for module in model.modules()))
        before = [_capture(module) for module in modules]
        kinds = [type(norm.module) for norm in norms]
        self.layers: list[Norm] = []
        self.notes: list[str] = []
        self._differences: list[tuple[nn.Module, _State, _State]] = []
        for way, function in (("convert", convert), ("revert", revert)):
            self.way = way  # type: ignore[assignment]
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    for model in models:
                        function(model)
            finally:
                self.layers = [norm for norm, kind in zip(norms, kinds, strict=True) if type(norm.module) is not kind]
                self._differences = [
                    (module, *difference)
                    for module, old in zip(modules, before, strict=True)
                    if (difference := _compare(old, _capture(module))) is not None
                ]
                self.undo()
            if self.layers:
                self.notes = [f"{way}: {warning.message}" for warning in caught]
                if way == "revert" and any(getattr(norm.module, "process_group", None) for norm in self.layers):
                    self.notes.append(SHARED)
                return

    def apply(self) -> None:
        """Take the changed form."""
        for module, _, new in self._differences:
            _put(module, new)

    def undo(self) -> None:
        """Take the form that was there first."""
        for module, old, _ in self._differences:
            _put(module, old)


def _capture(module: nn.Module) -> _State:
    members = module.__dict__.items()
    return type(module), {key: copy.copy(value) if key in _NESTED else value for key, value in members}


def _compare(old: _State, new: _State) -> tuple[_State, _State] | None:
    """Both states without what is equal in them; None where all is."""
    keys = [key for key in {**old[1], **new[1]} if _differs(key, old[1].get(key, _ABSENT), new[1].get(key, _ABSENT))]
    if not keys and old[0] is new[0]:
        return None
    first, second = ((cls, {key: members.get(key, _ABSENT) for key in keys}) for cls, members in (old, new))
    return first, second


def _differs(key: str, old: Any, new: Any) -> bool:
    return old != new if key in _NESTED else old is not new


def _put(module: nn.Module, state: _State) -> None:
    cls, members = state
    if type(module) is not cls:
        module.__class__ = cls
    for key, value in members.items():
        if value is _ABSENT:
            module.__dict__.pop(key, None)
        elif key in _NESTED:
            module.__dict__[key].clear()
            module.__dict__[key].update(value)
        else:
            module.__dict__[key] = value
