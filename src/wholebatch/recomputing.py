"""``save="input"``: the output of batch norm is not kept for backward, but formed again from what batch norm keeps.

Batch norm's own derivative needs its input z only. It is the next operation, a convolution say, that saves the output y
for its derivative, so that a net of conv, norm and ReLU holds two activations a layer. What an operation saves passes
the hooks of :class:`torch.autograd.graph.saved_tensors_hooks`; there y is recognised, and a recipe goes in its place::

    forward    z ── batch norm ── y ── conv            saved by batch norm: z            saved by conv: recipe of y
    backward   conv's derivative unpacks the recipe:   y = apply(z, mean, rstd, …), by the same kernel: the same bits

Who holds whom (weakly where it says so), so that everything goes when the graph lets go of it, without the collector::

    graph of batch norm → kept z → plan (mean, rstd, weight, …) ⇢ kept z
    graph of conv → recipe → kept z, plan                        scope ⇢ every kept tensor, every plan

Only one pair of hooks is in force at a time. So a layer does not push any, which would put the person's out of force in
the middle of a ``with`` block; a scope does, around a whole model, and leaves it where it finds another's in force.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from wholebatch.batch_norm import Call
from wholebatch.kernels.batch_norm import Affine, Kernel

Key = tuple[Any, ...]


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Kept:
    """A tensor saved as it is. ``version`` is torch's count of changes in place: with hooks torch no longer looks."""

    tensor: Tensor
    version: int
    plans: tuple[_Plan, ...] = ()  # of what batch norm made of it

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor {tuple(self.tensor.shape)} {self.tensor.dtype} that backward needs was changed in place: it "
                f"was saved at version {self.version} and is at version {self.tensor._version}; clone it before the "
                "change, or change it out of place"
            )
        return self.tensor


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Plan:
    """How the output of one call of batch norm is formed again, and what it looked like.

    ``storage`` is held weakly, and with it its address, by which the output is recognised: no other gets the same.
    """

    input: weakref.ref[_Kept]
    kernel: Kernel
    slope: float
    statistics: tuple[Tensor, Tensor]
    affine: tuple[Tensor | None, Tensor | None]
    mask: _Kept | None
    residual: _Kept | _Recipe | None
    storage: StorageWeakRef
    version: int
    dtype: torch.dtype
    start: int
    extent: int
    made: tuple[StorageWeakRef, tuple[Any, ...]] | None = None

    def make(self, input: _Kept) -> Tensor:
        """The output; in the memory of the one that was made before, while somebody still uses that."""
        if self.made is not None:
            storage, shape = self.made
            found = torch.UntypedStorage._new_with_weak_ptr(storage.cdata)
            if found is not None:
                return torch.empty(0, dtype=self.dtype, device=found.device).set_(found, *shape)
        residual = None if self.residual is None else self.residual.unpack()
        mask = None if self.mask is None else self.mask.unpack()
        with torch.no_grad():
            y = self.kernel.apply(
                input.unpack(), *self.statistics, Affine(*self.affine, residual, slope=self.slope, mask=mask)
            )
        self.made = StorageWeakRef(y.untyped_storage()), (y.storage_offset(), y.size(), y.stride())  # type: ignore[no-untyped-call]
        return y


@dataclass(slots=True, eq=False)
class _Recipe:
    """An output of batch norm, or a view of one, that is formed again when it is needed."""

    input: _Kept
    plan: _Plan
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def unpack(self) -> Tensor:
        y = self.plan.make(self.input)
        if y.size() == self.size and y.stride() == self.stride:
            return y
        return y.as_strided(self.size, self.stride, y.storage_offset() + self.offset)


class _Scope:
    """What has been saved in it, and the outputs that need not be: found by where and what a tensor is."""

    def __init__(self) -> None:
        self.kept: weakref.WeakValueDictionary[Key, _Kept] = weakref.WeakValueDictionary()
        self.plans: weakref.WeakValueDictionary[int, _Plan] = weakref.WeakValueDictionary()

    def pack(self, x: Tensor) -> _Kept | _Recipe:
        """The hook: what stands for ``x`` in the graph. It refers to no tensor that refers to the graph."""
        if not _is_plain(x):
            return _Kept(x.detach(), x._version)
        recipe = self.find_recipe(x)
        if recipe is not None:
            return recipe
        if x.dim() < 2:  # no input of batch norm
            return _Kept(x.detach(), x._version)
        key = _key(x)
        kept = self.kept.get(key)
        if kept is None:
            kept = self.kept[key] = _Kept(x.detach(), x._version)
        return kept

    def find_kept(self, x: Tensor) -> _Kept | None:
        """What holds ``x`` already."""
        return self.kept.get(_key(x)) if _is_plain(x) else None

    def find_recipe(self, x: Tensor) -> _Recipe | None:
        """The recipe of ``x``, where it is the output of a planned call, or a view of it, and not changed since."""
        plan = self.plans.get(x.untyped_storage()._cdata)
        if plan is None or x._version != plan.version or x.dtype != plan.dtype:
            return None
        input, offset = plan.input(), int(x.storage_offset()) - plan.start
        if input is None or offset < 0 or offset + _extent(x) > plan.extent:
            return None
        return _Recipe(input, plan, x.size(), x.stride(), offset)

    def plan(
        self,
        y: Tensor,
        z: Tensor,
        call: Call,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        """Note how ``y`` is formed again, if that needs nothing which the graph does not hold already."""
        if call.statistics is None:
            return  # done by torch's operations one by one, which save what they need
        input = self.find_kept(z)
        if input is None:
            return  # there is no graph, or other hooks have taken what it saved
        held = None
        if residual is not None:
            held = self.find_kept(residual) or (self.find_recipe(residual) if _is_plain(residual) else None)
            source = held.input if isinstance(held, _Recipe) else held
            # What is itself formed from a residual would be formed through all blocks before it. What is formed from
            # the same z would be a circle of references.
            if source in (None, input) or (isinstance(held, _Recipe) and held.plan.residual is not None):
                return
        mean, rstd = call.statistics
        storage = StorageWeakRef(y.untyped_storage())  # type: ignore[no-untyped-call]
        plan = _Plan(
            weakref.ref(input),
            call.kernel,
            call.slope,
            # Copies: sharded parameters are gone when the derivative of the next layer asks for the output, and running
            # statistics may have moved.
            (mean.clone(), rstd.clone()),
            (None if weight is None else weight.detach().clone(), None if bias is None else bias.detach().clone()),
            None if mask is None else _Kept(mask, mask._version),
            held,
            storage,
            y._version,
            y.dtype,
            int(y.storage_offset()),
            _extent(y),
        )
        input.plans += (plan,)
        self.plans[storage.cdata] = plan


def _is_plain(x: Tensor) -> bool:
    """Whether where it is and what it looks like is all there is to a tensor."""
    return type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_neg() and not x.is_conj()


def _key(x: Tensor) -> Key:
    return x.untyped_storage()._cdata, x.storage_offset(), x.size(), x.stride(), x.dtype, x._version


def _extent(x: Tensor) -> int:
    """How many elements of the storage lie from its first to its last one."""
    if x.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(x.size(), x.stride(), strict=True))


def _unpack(packed: _Kept | _Recipe) -> Tensor:
    return packed.unpack()


_SCOPE: ContextVar[_Scope | None] = ContextVar("wholebatch.recomputing", default=None)


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
    scope = _Scope()
    before = _SCOPE.get()
    _SCOPE.set(scope)
    try:
        with saved_tensors_hooks(scope.pack, _unpack):
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


def plan_output(
    y: Tensor,
    z: Tensor,
    call: Call,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> None:
    """After a call of batch norm that gave ``y``: in a scope, whoever saves ``y`` gets a recipe instead."""
    scope = _SCOPE.get()
    if scope is not None:
        scope.plan(y, z, call, weight, bias, residual, mask)


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
