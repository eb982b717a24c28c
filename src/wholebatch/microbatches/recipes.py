"""``offload="recompute"``: of what autograd saves, only what passes from one batch norm to the next is kept.

The rest is formed again in backward. A part's section, from one batch norm to the next, cannot be called a second time:
it is the middle of somebody's function. But its operations can. They are watched and written down, each with where its
inputs came from, and what autograd saves is replaced by the way to it::

    z ── batch norm ── y ── relu ── r ── convolution ── z of the next batch norm
    kept               └ z, statistics └ relu(y)          kept
                         a recipe        a recipe: what convolution and relu save

Kept is what has no recipe: z and all else that passes a batch norm, parameters, inputs, and what operations made that
draw random numbers, communicate, or are not known. A section of one part is formed once, at the first need, and dropped
when backward leaves it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from wholebatch.microbatches.host import Geometry, geometry, is_gone, plainly, refer, view_as
from wholebatch.microbatches.thread import autocast_devices
from wholebatch.microbatches.trees import tensors_in, written_by
from wholebatch.recomputing import Held, is_plain


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Step:
    """An operation that can be done again; ``values``: the tensors it made, where it has been."""

    number: int
    run: Callable[..., Any]
    args: Any
    kwargs: Any
    section: _Section
    written: int | None = None  # the argument that it changes, of which it gets a copy
    values: list[Tensor] | None = None


class _Section:
    """From one batch norm to the next: the steps that have been done again."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done: weakref.WeakSet[_Step] = weakref.WeakSet()

    def drop(self) -> None:
        """Drop what has been formed again."""
        for step in self.done:
            step.values = None
        self.done.clear()


@dataclass(slots=True, eq=False)
class _Recipe:
    """A tensor on the storage of a step's result."""

    step: _Step
    index: int
    geometry: Geometry


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Ingredient:
    """A tensor that a step reads, and that is kept for it."""

    tensor: Tensor
    version: int

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor {tuple(self.tensor.shape)} {self.tensor.dtype} that offload='recompute' needs to form "
                f"others again was changed in place after the forward pass (version {self.version}, now "
                f"{self.tensor._version}): change it after backward, or use offload='none' or 'cpu'"
            )
        return self.tensor


@dataclass(slots=True)
class _Origin:
    """Where a storage's contents came from."""

    weak: StorageWeakRef
    step: _Step
    index: int
    geometry: Geometry


class Recipes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The :class:`wholebatch.microbatches.store.Store` of one part, and the watch over its operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._section = _Section()
        self._origins: dict[int, _Origin] = {}
        self._ingredients: dict[int, weakref.WeakSet[_Ingredient]] = {}
        self._steps, self._many = 0, 64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = written_by(func, args, kwargs) if func._schema.is_mutable else []
        if not _can_be_repeated(func):
            result = func(*args, **kwargs)
            for x in tensors_in(written):
                self._origins.pop(x.untyped_storage()._cdata, None)
            return result
        if written:
            return self._change(func, args, kwargs, written)
        inputs = {x.untyped_storage()._cdata for x in tensors_in((*args, *kwargs.values())) if is_plain(x)}
        result = func(*args, **kwargs)
        made = list(tensors_in((result,)))
        if all(is_plain(y) for y in made) and not any(y.untyped_storage()._cdata in inputs for y in made):
            self._write_down(func, args, kwargs, made)
        return result

    def keep(self, x: Tensor) -> Callable[[], Tensor]:
        return lambda: x

    @contextmanager
    def saving(self) -> Iterator[None]:
        with saved_tensors_hooks(self._pack, _unpack), self:
            yield

    def arrive(self) -> Callable[[], None]:
        self._section = _Section()
        return self._section.drop

    def note_output(self, y: Tensor, apply: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> None:
        self._write_down(apply, tuple(inputs), {}, [y])

    def put_aside(self, z: Tensor, tokens: Tensor) -> None: ...

    def take_back(self) -> None: ...

    def finish(self) -> None:
        self._origins.clear()
        self._ingredients.clear()

    def _write_down(self, run: Any, args: Any, kwargs: Any, made: Sequence[Tensor]) -> None:
        self._steps += 1
        sources, named = tree_map(self._source, (args, kwargs))
        step = _Step(self._steps, run, sources, named, self._section)
        for index, y in enumerate(made):
            storage = y.untyped_storage()
            self._origins[storage._cdata] = _Origin(refer(storage), step, index, geometry(y))
        if len(self._origins) > self._many:
            for key in [key for key, origin in self._origins.items() if is_gone(origin.weak)]:
                del self._origins[key]
            for key in [key for key, ingredients in self._ingredients.items() if not ingredients]:
                del self._ingredients[key]
            self._many = 64 + 2 * len(self._origins)

    def _change(self, func: Any, args: Any, kwargs: Any, written: Sequence[Any]) -> Any:
        """An operation that writes to its arguments: a recipe where it is one tensor, and all of its storage."""
        x = written[0]
        origin = self._find(x) if len(written) == 1 and is_plain(x) else None
        keys = [t.untyped_storage()._cdata for t in tensors_in(written)]
        for key in keys:  # those who need it as it was get a copy
            for ingredient in self._ingredients.pop(key, ()):
                with plainly():
                    ingredient.tensor = ingredient.tensor.clone()
                ingredient.version = ingredient.tensor._version
        sources = named = None
        if origin is not None and origin.geometry == geometry(x) and args and args[0] is x and x._is_view() is False:
            sources, named = tree_map(self._source, (args, kwargs))
        result = func(*args, **kwargs)
        if sources is None or geometry(x) != origin.geometry:  # type: ignore[union-attr]
            for key in keys:
                self._origins.pop(key, None)
            return result
        self._steps += 1
        step = _Step(self._steps, func, sources, named, self._section, 0)
        storage = x.untyped_storage()
        self._origins[storage._cdata] = _Origin(refer(storage), step, 0, geometry(x))
        return result

    def _find(self, x: Tensor) -> _Origin | None:
        """Where ``x`` came from, if that is in this section."""
        origin = self._origins.get(x.untyped_storage()._cdata)
        return origin if origin is not None and origin.step.section is self._section else None

    def _source(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        origin = self._find(x) if is_plain(x) else None
        if origin is not None:
            return _Recipe(origin.step, origin.index, geometry(x))
        ingredient = _Ingredient(x, x._version)  # itself: below autograd, detach() would not share its version
        if is_plain(x):
            self._ingredients.setdefault(x.untyped_storage()._cdata, weakref.WeakSet()).add(ingredient)
        return ingredient

    def _pack(self, x: Tensor) -> _Recipe | Held:
        origin = self._find(x) if is_plain(x) else None
        return Held(x.detach(), x._version) if origin is None else _Recipe(origin.step, origin.index, geometry(x))


def _unpack(packed: _Recipe | Held) -> Tensor:
    if isinstance(packed, Held):
        return packed.unpack()
    _make(packed.step)
    return _view(packed)


def _view(recipe: _Recipe) -> Tensor:
    assert recipe.step.values is not None
    return view_as(recipe.step.values[recipe.index].untyped_storage(), recipe.geometry)


def _make(step: _Step) -> None:
    """Do the steps that this one needs and that are not done, in the order in which they were."""
    needed, open_steps = {step}, [step]
    while open_steps:
        now = open_steps.pop()
        if now.values is not None:
            needed.discard(now)
            continue
        for source in tree_iter((now.args, now.kwargs), is_leaf=_is_source):
            if isinstance(source, _Recipe) and source.step not in needed:
                needed.add(source.step)
                open_steps.append(source.step)
    with ExitStack() as stack:
        stack.enter_context(plainly())
        for kind in autocast_devices():
            stack.enter_context(torch.autocast(kind, enabled=False))
        for now in sorted(needed, key=lambda step: step.number):
            args, kwargs = tree_map(_get, (now.args, now.kwargs), is_leaf=_is_source)
            if now.written is not None:
                args = (args[0].clone(), *args[1:])
                now.run(*args, **kwargs)
                result: Any = args[0]
            else:
                result = now.run(*args, **kwargs)
            now.section.done.add(now)
            now.values = list(tensors_in((result,)))


def _is_source(x: Any) -> bool:
    return isinstance(x, _Recipe | _Ingredient)


def _get(x: Any) -> Any:
    return _view(x) if isinstance(x, _Recipe) else x.get() if isinstance(x, _Ingredient) else x


_REPEATABLE = ("aten", "torchvision")
_UNDEFINED = ("empty", "new_empty", "resize", "set_")  # contents that others write, unseen


@cache
def _can_be_repeated(func: Any) -> bool:
    """Whether an operation gives the same again for the same inputs, and does nothing else."""
    name = func._schema.name.partition("::")[2]
    return (
        func.namespace in _REPEATABLE
        and torch.Tag.nondeterministic_seeded not in func.tags
        and not name.startswith(_UNDEFINED)
    )
