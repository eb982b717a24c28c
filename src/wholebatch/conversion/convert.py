"""``convert`` and ``revert``: every batch norm of a model becomes wholebatch's, in place, and PyTorch's again.

The object stays and changes its class, so everything that holds it goes on holding it: modules used twice, hooks,
optimizers, parametrizations, ``state_dict``, training flags, devices. The model itself may be a batch norm.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from wholebatch.conversion.absorption import absorb, find_activations, release
from wholebatch.conversion.graph import survey
from wholebatch.layers import (
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    Save,
    WholeBatchNorm,
)
from wholebatch.recomputing import attach_scope, detach_scope
from wholebatch.sharing import ProcessGroupLike, check_process_group

M = TypeVar("M", bound=nn.Module)

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: BatchNorm,
    nn.LazyBatchNorm1d: LazyBatchNorm1d,
    nn.LazyBatchNorm2d: LazyBatchNorm2d,
    nn.LazyBatchNorm3d: LazyBatchNorm3d,
}
_ORIGINALS = {ours: theirs for theirs, ours in TWINS.items() if ours is not BatchNorm}


@dataclass(frozen=True)
class Origin:
    """What a layer was before: for SyncBatchNorm also the ranks that it was for (None: all)."""

    cls: type[nn.Module]
    process_group: ProcessGroup | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self  # processes are shared, not copied

    def __reduce__(self) -> tuple[type[Origin], tuple[type[nn.Module]]]:
        return Origin, (self.cls,)  # a group belongs to running processes


def convert(
    model: M,
    process_group: ProcessGroupLike = None,
    *,
    activation: bool = False,
    save: Save = None,
) -> M:
    """Change every batch norm of ``model`` into wholebatch's, in place.

    ``BatchNorm1d/2d/3d``, their lazy forms and ``SyncBatchNorm`` of torch.nn become the layers of the same name in
    :mod:`wholebatch` (``SyncBatchNorm`` becomes :class:`wholebatch.BatchNorm`). Outputs, gradients and ``state_dict``
    are as before; with a ``process_group`` they are those of the mini-batch of all its ranks. Layers learn their names
    in the model, which errors then tell. To convert again is harmless.

    Args:
        model: any module; a batch norm itself, too.
        process_group: who shares the mini-batch, see :class:`wholebatch.layers.WholeBatchNorm`. None: this process
            alone; but a SyncBatchNorm keeps its ranks, and a layer that is wholebatch's already what it has.
        activation: let a batch norm do the ReLU or leaky ReLU module that follows it, in the same pass over memory.
            Done where torch.fx shows, in training and in evaluation, that the batch norm's output goes to that module
            and nowhere else, and neither has hooks. The module stays in its place, and lets pass what is done. Code
            outside the model's forward that takes a batch norm's output by itself would get it activated.
        save: ``"input"``: the layers' inputs are kept for backward, their outputs are formed again; each call of
            ``model`` runs in :func:`wholebatch.saving_inputs`. None: a layer keeps what it has.

    Returns:
        ``model``.

    Raises:
        TypeError: not a module, a ``process_group`` of another kind, or an ``activation`` that is no bool.
        ValueError: an unknown ``save`` or name of a group.

    Warns:
        UserWarning: names batch norms of other classes, or whose forward was replaced on the object, which may compute
            something else and are left as they are.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert takes a torch.nn.Module, and got a {type(model).__name__}")
    if not isinstance(activation, bool):
        raise TypeError(f"activation is {activation!r}; it must be True or False: absorbed is what the model has")
    check_process_group(process_group)
    if save not in (None, "input"):
        raise ValueError(f"save is {save!r}; it must be None or 'input'")
    scoped = detach_scope(model) or save == "input"
    graph = survey(model, training=(True, False)) if activation else None
    strangers = []
    for name, module in list(model.named_modules()):
        if not isinstance(module, _BatchNorm):
            continue
        if not _become_ours(module, name, process_group, save):
            own = ", its forward set on the object" if "forward" in module.__dict__ else ""
            strangers.append(f"{name or 'the model'} ({type(module).__name__}{own})")
        elif graph is not None and isinstance(module, WholeBatchNorm) and module.activation is None:
            activations = find_activations(module, graph)
            if activations:
                absorb(module, activations)
    if scoped:
        attach_scope(model)
    if strangers:
        warnings.warn(
            f"{len(strangers)} batch norms may compute something else than torch.nn's, and stay as they are: "
            f"{', '.join(strangers)}. If they do not, make them of torch.nn's own classes before",
            stacklevel=2,
        )
    return model


def revert(model: M) -> M:
    """Change wholebatch's batch norms back into what they were before :func:`convert`, in place.

    Absorbed activations are done by their own modules again. Layers that were wholebatch's from the start become
    torch.nn's of the same name.

    Returns:
        ``model``.

    Warns:
        UserWarning: names layers that torch.nn has no form of, which stay: those that were built with an activation,
            and :class:`wholebatch.BatchNorm` that was no SyncBatchNorm.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert takes a torch.nn.Module, and got a {type(model).__name__}")
    detach_scope(model)
    staying = []
    for name, module in list(model.named_modules()):
        release(module)
        if isinstance(module, WholeBatchNorm) and not _become_theirs(module):
            staying.append(f"{name or 'the model'} ({type(module).__name__})")
    if staying:
        warnings.warn(
            f"{len(staying)} batch norms have no form in torch.nn, and stay as they are: {', '.join(staying)}",
            stacklevel=2,
        )
    return model


def _become_ours(module: _BatchNorm, name: str, process_group: ProcessGroupLike, save: Save) -> bool:
    if isinstance(module, WholeBatchNorm):
        if process_group is not None:
            module.process_group = process_group
        module.equip(
            process_group=module.process_group, activation=module.activation, save=save or module.save, name=name
        )
        return True
    cls = parametrize.type_before_parametrizations(module)
    twin = TWINS.get(cls)
    if twin is None or "forward" in module.__dict__:
        return False
    origin = Origin(cls, getattr(module, "process_group", None))
    if cls is nn.SyncBatchNorm and process_group is None:
        process_group = origin.process_group or "world"
    _change_class(module, cls, twin)
    WholeBatchNorm.equip(module, process_group=process_group, activation=None, save=save, name=name)  # type: ignore[type-var]
    module._origin = origin  # type: ignore[assignment]
    return True


def _become_theirs(module: WholeBatchNorm) -> bool:
    cls = parametrize.type_before_parametrizations(module)
    origin: Origin | None = module.__dict__.get("_origin")
    original = origin.cls if origin is not None else _ORIGINALS.get(cls)
    if original is None or module.activation is not None:
        return False
    if original in TWINS and cls is not TWINS[original]:  # a lazy layer that has seen its first input
        original = _ORIGINALS[cls]
    for key in ("process_group", "activation", "save", "_name", "_origin"):
        module.__dict__.pop(key, None)
    _change_class(module, cls, original)
    if origin is not None and original is nn.SyncBatchNorm:
        module.process_group = origin.process_group
    return True


def _change_class(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    if type(module) is old:
        module.__class__ = new
        return
    # A parametrized layer has a class of its own, below the layer's, that holds the parameters' properties.
    members = {key: value for key, value in vars(type(module)).items() if key not in ("__dict__", "__weakref__")}
    if hasattr(new, "__deepcopy__"):
        members.pop("__deepcopy__", None)
    module.__class__ = type(f"Parametrized{new.__name__}", (new,), members)
