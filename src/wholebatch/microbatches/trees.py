"""Inputs and outputs of any structure: the tensors in them, cut by rows and put together again.

What torch's pytrees know is followed (tuples, lists, dicts, named tuples, registered classes), and dataclasses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree


def list_tensors(tree: Any) -> list[Tensor]:
    """All tensors of a structure."""
    return [leaf for leaf in _flatten(tree)[0] if isinstance(leaf, Tensor)]


def count_rows(tree: Any, name: str) -> int:
    """The size of dimension 0, which all tensors that have dimensions must share.

    Raises:
        ValueError: they differ, or there is no such tensor.
    """
    sizes = {tensor.shape[0] for tensor in list_tensors(tree) if tensor.dim()}
    if len(sizes) != 1:
        found = f"have {', '.join(map(str, sorted(sizes)))} rows" if sizes else "hold no tensor with rows"
        raise ValueError(f"{name} {found}; dimension 0 of every tensor must be the mini-batch's examples")
    return sizes.pop()


def split(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """The structure for each part: tensors cut along dimension 0, all else (scalars too) as it is."""
    leaves, build = _flatten(tree)
    cut = [
        torch.split(leaf, list(sizes)) if isinstance(leaf, Tensor) and leaf.dim() else [leaf] * len(sizes)
        for leaf in leaves
    ]
    return [build([pieces[part] for pieces in cut]) for part in range(len(sizes))]


def join(trees: Sequence[Any]) -> Any:
    """One structure of those of all parts: tensors concatenated along dimension 0, all else as in the first one.

    Raises:
        ValueError: structures differ, or a tensor without dimensions, say a loss, cannot be concatenated.
    """
    flat = [_flatten(tree) for tree in trees]
    if len({len(leaves) for leaves, _ in flat}) != 1:
        raise ValueError("the parts' outputs have different structures, and cannot be put together")
    joined = []
    for pieces in zip(*(leaves for leaves, _ in flat), strict=True):
        if not isinstance(pieces[0], Tensor):
            joined.append(pieces[0])
        elif pieces[0].dim() == 0:
            raise ValueError(
                "the model's outputs hold a tensor without dimensions, which cannot be put together from those of the "
                "parts: let it return values for each example, or use reduction='mean' or 'sum'"
            )
        else:
            joined.append(torch.cat(pieces))
    return flat[0][1](joined)


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    """Leaves, and what builds the structure from as many leaves."""
    leaves, spec = _pytree.tree_flatten(tree)
    fields = [
        _flatten([getattr(leaf, field.name) for field in dataclasses.fields(leaf)]) if _is_dataclass(leaf) else None
        for leaf in leaves
    ]
    if not any(fields):
        return leaves, lambda new: _pytree.tree_unflatten(new, spec)

    flat = [inner for leaf, parts in zip(leaves, fields, strict=True) for inner in (parts[0] if parts else [leaf])]

    def build(new: list[Any]) -> Any:
        rest = iter(new)
        built = []
        for leaf, parts in zip(leaves, fields, strict=True):
            if parts is None:
                built.append(next(rest))
            else:
                values = parts[1]([next(rest) for _ in parts[0]])
                names = [field.name for field in dataclasses.fields(leaf)]
                built.append(_rebuild(leaf, dict(zip(names, values, strict=True))))
        return _pytree.tree_unflatten(built, spec)

    return flat, build


def _is_dataclass(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)


def _rebuild(old: Any, values: dict[str, Any]) -> Any:
    """A copy with other values, also where the class computes some in its constructor."""
    new = object.__new__(type(old))
    for name, value in values.items():
        object.__setattr__(new, name, value)
    return new


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results, where only lists and tuples nest.

    Whatever watches each operation does this twice for it; torch's general walk takes four times as long.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def written_by(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Those of an operator's arguments that it writes to."""
    return [
        args[number] if number < len(args) else kwargs.get(argument.name)
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
