"""Where ``save="input"`` is in force: a context, or every call of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from wholebatch.batch_norm import Call
from wholebatch.kernels.batch_norm import Affine
from wholebatch.recomputing.recipes import Scope, unpack

_SCOPE: ContextVar[Scope | None] = ContextVar("wholebatch.recomputing", default=None)


@contextmanager
def saving_inputs() -> Iterator[None]:
    """Context in which layers with ``save="input"`` keep their input only, and not their output for whoever uses it.

    ::

        with wholebatch.saving_inputs():
            loss = criterion(model(x), target)
        loss.backward()

    What is saved for backward is the same to the bit: an output that a later operation saves is formed again in
    backward, by one more application of batch norm, and views of it are too. It is kept as ever where that would spare
    nothing: after a change in place, such as ``nn.ReLU(inplace=True)`` on it (let the layer do the ReLU: ``activation=
    "relu"``), and where it has a residual that would itself have to be formed from another residual.

    Outside of such a context ``save="input"`` changes nothing; :func:`wholebatch.convert` puts one around each call of
    the model. It has no effect within other hooks for saved tensors (``checkpoint``, ``save_on_cpu``), which go on to
    decide what is kept, and none in what torch.compile compiles. Other hooks inside of it take what is saved in them.

    Raises:
        RuntimeError: (by backward) a saved tensor was changed in place, as without this context.
    """
    if not _free():
        yield
        return
    scope = Scope()
    before = _SCOPE.get()
    _SCOPE.set(scope)
    try:
        with saved_tensors_hooks(scope.pack, unpack):
            yield
    finally:
        _SCOPE.set(before)


def _free() -> bool:
    """Whether no hooks are in force, and hooks can be."""
    autograd: Any = torch._C._autograd
    if torch.compiler.is_compiling() or not autograd._saved_tensors_hooks_is_enabled():
        return False
    if not hasattr(autograd, "_top_saved_tensors_default_hooks"):
        _tell_old_torch()
        return False
    return autograd._top_saved_tensors_default_hooks(True) is None


@cache
def _tell_old_torch() -> None:
    warnings.warn(
        f"save='input' spares no memory with torch {torch.__version__}: it needs torch 2.8 or later", stacklevel=3
    )


def plan_output(y: Tensor, z: Tensor, call: Call, affine: Affine) -> None:
    """After a call of batch norm that gave ``y``: in a scope, whoever saves ``y`` gets a recipe instead."""
    scope = _SCOPE.get()
    if scope is not None:
        scope.plan(y, z, call, affine)


# A module's calls that are under way, the innermost last.
_CALLS: ContextVar[tuple[tuple[nn.Module, AbstractContextManager[None]], ...]] = ContextVar("calls", default=())


def attach_scope(model: nn.Module) -> None:
    """Every call of ``model`` runs in :func:`saving_inputs`. Copies and pickles of it keep that."""
    if _enter not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_enter, prepend=True)
        model.register_forward_hook(_leave, always_call=True)


def detach_scope(model: nn.Module) -> bool:
    """Undo :func:`attach_scope`; whether there was something to undo."""
    attached = _enter in model._forward_pre_hooks.values()
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_enter, _leave)]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    return attached


def _enter(module: nn.Module, inputs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    scope = saving_inputs()
    scope.__enter__()
    _CALLS.set((*_CALLS.get(), (module, scope)))


def _leave(module: nn.Module, inputs: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    calls = _CALLS.get()
    # torch calls this also where another hook raised before ours was entered.
    if calls and calls[-1][0] is module:
        _CALLS.set(calls[:-1])
        calls[-1][1].__exit__(None, None, None)
