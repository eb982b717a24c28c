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

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from wholebatch.batch_norm import Call
from wholebatch.kernels.batch_norm import Affine, Kernel
from wholebatch.recomputing.held import Held

Key = tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Kept(Held):
    """A tensor saved as it is."""

    plans: tuple[Plan, ...] = ()  # of what batch norm made of it


@dataclass(slots=True, weakref_slot=True, eq=False)
class Plan:
    """How the output of one call of batch norm is formed again, and what it looked like.

    ``storage`` is held weakly, and with it its address, by which the output is recognised: no other gets the same.
    """

    input: weakref.ref[Kept]
    kernel: Kernel
    slope: float
    statistics: tuple[Tensor, Tensor]
    affine: tuple[Tensor | None, Tensor | None]
    mask: Kept | None
    residual: Kept | Recipe | None
    storage: StorageWeakRef
    version: int
    dtype: torch.dtype
    start: int
    extent: int
    made: tuple[StorageWeakRef, tuple[Any, ...]] | None = None

    def make(self, input: Kept) -> Tensor:
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
class Recipe:
    """An output of batch norm, or a view of one, that is formed again when it is needed."""

    input: Kept
    plan: Plan
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def unpack(self) -> Tensor:
        y = self.plan.make(self.input)
        if y.size() == self.size and y.stride() == self.stride:
            return y
        return y.as_strided(self.size, self.stride, y.storage_offset() + self.offset)


class Scope:
    """What has been saved in it, and the outputs that need not be: found by where and what a tensor is."""

    def __init__(self) -> None:
        self.kept: weakref.WeakValueDictionary[Key, Kept] = weakref.WeakValueDictionary()
        self.plans: weakref.WeakValueDictionary[int, Plan] = weakref.WeakValueDictionary()

    def pack(self, x: Tensor) -> Kept | Recipe:
        """The hook: what stands for ``x`` in the graph. It refers to no tensor that refers to the graph."""
        if not is_plain(x):
            return Kept(x.detach(), x._version)
        recipe = self.find_recipe(x)
        if recipe is not None:
            return recipe
        if x.dim() < 2:  # no input of batch norm
            return Kept(x.detach(), x._version)
        key = _key(x)
        kept = self.kept.get(key)
        if kept is None:
            kept = self.kept[key] = Kept(x.detach(), x._version)
        return kept

    def find_kept(self, x: Tensor) -> Kept | None:
        """What holds ``x`` already."""
        return self.kept.get(_key(x)) if is_plain(x) else None

    def find_recipe(self, x: Tensor) -> Recipe | None:
        """The recipe of ``x``, where it is the output of a planned call, or a view of it, and not changed since."""
        plan = self.plans.get(x.untyped_storage()._cdata)
        if plan is None or x._version != plan.version or x.dtype != plan.dtype:
            return None
        input, offset = plan.input(), int(x.storage_offset()) - plan.start
        if input is None or offset < 0 or offset + _extent(x) > plan.extent:
            return None
        return Recipe(input, plan, x.size(), x.stride(), offset)

    def plan(self, y: Tensor, z: Tensor, call: Call, affine: Affine) -> None:
        """Note how ``y`` is formed again, if that needs nothing which the graph does not hold already."""
        if call.statistics is None:
            return  # done by torch's operations one by one, which save what they need
        input = self.find_kept(z)
        if input is None:
            return  # there is no graph, or other hooks have taken what it saved
        weight, bias, residual, slope, mask = affine
        held = None
        if residual is not None:
            held = self.find_kept(residual) or (self.find_recipe(residual) if is_plain(residual) else None)
            source = held.input if isinstance(held, Recipe) else held
            # What is itself formed from a residual would be formed through all blocks before it. What is formed from
            # the same z would be a circle of references.
            if source in (None, input) or (isinstance(held, Recipe) and held.plan.residual is not None):
                return
        mean, rstd = call.statistics
        storage = StorageWeakRef(y.untyped_storage())  # type: ignore[no-untyped-call]
        plan = Plan(
            weakref.ref(input),
            call.kernel,
            slope,
            # Copies: sharded parameters are gone when the derivative of the next layer asks for the output, and running
            # statistics may have moved.
            (mean.clone(), rstd.clone()),
            (None if weight is None else weight.detach().clone(), None if bias is None else bias.detach().clone()),
            None if mask is None else Kept(mask, mask._version),
            held,
            storage,
            y._version,
            y.dtype,
            int(y.storage_offset()),
            _extent(y),
        )
        input.plans += (plan,)
        self.plans[storage.cdata] = plan


def is_plain(x: Any) -> bool:
    """Whether where it is and what it looks like is all there is to a tensor."""
    return type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_neg() and not x.is_conj()


def _key(x: Tensor) -> Key:
    return x.untyped_storage()._cdata, x.storage_offset(), x.size(), x.stride(), x.dtype, x._version


def _extent(x: Tensor) -> int:
    """How many elements of the storage lie from its first to its last one."""
    if x.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(x.size(), x.stride(), strict=True))


def unpack(packed: Kept | Recipe) -> Tensor:
    """The hook: what ``packed`` stands for."""
    return packed.unpack()
