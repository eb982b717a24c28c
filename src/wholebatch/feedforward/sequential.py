"""To and from ``nn.Sequential``: the way that nets of this kind are written in PyTorch.

A hidden layer is a ``Linear``, then a norm and an activation in either order (each may be missing), then a ``Dropout``.
A ``FeedForward`` has one kind of hidden layer throughout, so a net whose layers differ is refused, with the module
named, rather than changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.feedforward.module import ACTIVATIONS, FeedForward

NORMS: dict[type[nn.Module], str] = {nn.BatchNorm1d: "batch", nn.LayerNorm: "layer", nn.RMSNorm: "rms"}
ACTIVATION_NAMES = {type(make()): name for name, make in ACTIVATIONS.items()}
Norm = nn.BatchNorm1d | nn.LayerNorm | nn.RMSNorm


@dataclass(frozen=True)
class _Item:
    """A module and where it stands, ``3`` or in a nested Sequential ``1.3``."""

    name: str
    module: Any

    def refuse(self, violated: str, remedy: str) -> ValueError:
        return ValueError(f"module {self.name} ({type(self.module).__name__}) {violated}; {remedy}")


@dataclass
class _Block:
    """A linear layer and what follows it."""

    linear: _Item
    norm: _Item | None = None
    activation: _Item | None = None
    dropout: _Item | None = None
    norm_position: str | None = None  # None: without a norm or an activation there is no order of the two

    @property
    def traits(self) -> dict[str, tuple[Any, _Item]]:
        """What all hidden layers have to agree on, each with the module that says so."""
        norm, activation = self.norm or self.linear, self.activation or self.linear
        traits = {
            "norm": (NORMS.get(type(norm.module), "none"), norm),
            "activation": (ACTIVATION_NAMES.get(type(activation.module), "identity"), activation),
            "dropout": (self.dropout.module.p if self.dropout else 0.0, self.dropout or self.linear),
        }
        if self.norm is not None:
            traits["eps"] = (_eps(norm.module, self.linear.module.weight.dtype), norm)
            traits["momentum"] = (getattr(norm.module, "momentum", 0.1), norm)
        if self.norm_position is not None:
            traits["norm_position"] = (self.norm_position, norm)
        return traits


def to_sequential(net: FeedForward) -> nn.Sequential:
    """The net as a plain ``nn.Sequential`` of torch's own modules, with copies of its parameters and statistics."""
    return copy.deepcopy(net.layers)


def from_sequential(sequential: nn.Sequential) -> FeedForward:
    """The :class:`FeedForward` that computes what ``sequential`` computes, in eval and in training mode.

    Parameters and statistics are copied; dtype, device and training flags are kept. A ``Linear`` bias right before
    batch norm has no effect but on the running mean, so it is folded into it: ``running_mean - bias``. What the net
    has and ``sequential`` lacks starts where it changes nothing, and is learned from then on: a bias of 0, and
    gamma 1 and beta 0 for a norm without them (``affine=False``).

    Raises:
        TypeError: not an ``nn.Sequential``.
        ValueError: a module that cannot be represented, or layers that differ; it names the module and the remedy.
    """
    if not isinstance(sequential, nn.Sequential):
        raise TypeError(f"from_sequential takes an nn.Sequential, not a {type(sequential).__name__}")
    *hidden, output = _blocks(_flatten(sequential))
    _check_output(output)
    _check_chain([*hidden, output])
    traits: dict[str, Any] = {"norm": "none", "activation": "identity"}
    if hidden:
        traits = _agreed(hidden)
    weight = output.linear.module.weight
    sizes = [block.linear.module.out_features for block in hidden]
    first = (hidden[0] if hidden else output).linear.module
    net = FeedForward(
        first.in_features, tuple(sizes), weight.shape[0], **traits, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        for block, part in zip([*hidden, output], net.parts(), strict=True):
            bias = _fill_linear(part.linear, block.linear.module, folded=part.linear.bias is None)
            if block.norm is not None and isinstance(part.norm, Norm):
                _fill_norm(part.norm, block.norm.module, bias)
    _copy_modes(net, sequential, hidden)
    return net


def _flatten(sequential: nn.Sequential, prefix: str = "") -> Iterator[_Item]:
    for index, module in enumerate(sequential):  # named_children() leaves out a module that stands there twice
        if type(module) is nn.Sequential:
            yield from _flatten(module, f"{prefix}{index}.")
        else:
            yield _Item(f"{prefix}{index}", module)


def _blocks(items: Iterator[_Item]) -> list[_Block]:
    """The modules grouped by linear layer.

    Raises:
        ValueError: a module that cannot be represented where it stands.
    """
    blocks: list[_Block] = []
    seen: dict[nn.Module, str] = {}
    for item in items:
        kind = type(item.module)
        if item.module in seen and kind not in (*ACTIVATION_NAMES, nn.Dropout):
            raise item.refuse(f"is module {seen[item.module]} once more", "give each layer a module of its own")
        seen[item.module] = item.name
        if kind is nn.Linear:
            blocks.append(_Block(item))
        elif kind is nn.Dropout and item.module.p == 0:
            continue
        elif kind not in (*NORMS, *ACTIVATION_NAMES, nn.Dropout):
            known = ", ".join(sorted(k.__name__ for k in (nn.Linear, nn.Dropout, *NORMS, *ACTIVATION_NAMES)))
            remedy = "leave it out: the loss holds the softmax" if "Softmax" in kind.__name__ else "leave it out"
            raise item.refuse(f"has no place in a FeedForward, which is made of {known}", remedy)
        elif not blocks:
            if kind is not nn.Identity:
                raise item.refuse(
                    "stands before the first Linear", "apply it to the inputs beforehand, and leave it out"
                )
        else:
            _add(blocks[-1], item)
    if not blocks:
        raise ValueError("the Sequential has no Linear; a FeedForward needs at least an output layer")
    return blocks


def _add(block: _Block, item: _Item) -> None:
    """Put one norm, activation or dropout into its place after ``block``'s linear layer."""
    kind = type(item.module)
    _check_settings(item, block.linear.module.out_features)
    if kind is nn.Dropout:
        if block.dropout is not None:
            raise item.refuse("is the second Dropout of its layer", "replace both by one")
        block.dropout = item
        return
    if kind is nn.Identity and block.activation is not None:
        return
    if block.dropout is not None and kind is not nn.Identity:
        raise item.refuse("stands after its layer's Dropout", "put the Dropout after norm and activation")
    if kind in NORMS:
        if block.norm is not None:
            raise item.refuse("is the second norm of its layer", "leave one of them out")
        block.norm = item
        block.norm_position = None if block.activation is None else "after"
        return
    if block.activation is not None and type(block.activation.module) is not nn.Identity:
        raise item.refuse("is the second activation of its layer", "leave one of them out")
    # An Identity that gives way to a real activation leaves the order to that one.
    block.activation = item
    block.norm_position = None if block.norm is None else "before"


def _check_settings(item: _Item, features: int) -> None:
    """Raise where a module of a known kind has settings that a FeedForward does not have."""
    module = item.module
    if type(module) in ACTIVATION_NAMES:
        default = ACTIVATIONS[ACTIVATION_NAMES[type(module)]]()
        for setting in ("negative_slope", "alpha", "approximate"):
            given, kept = getattr(module, setting, None), getattr(default, setting, None)
            if given != kept:
                raise item.refuse(f"has {setting}={given!r}, a FeedForward has {kept!r}", f"use {setting}={kept!r}")
    elif type(module) is nn.BatchNorm1d:
        if module.num_features != features:
            raise item.refuse(f"has {module.num_features} features", f"the Linear before it gives {features}")
        if not module.track_running_stats:
            raise item.refuse("keeps no running statistics, which eval mode needs", "use track_running_stats=True")
    elif type(module) in NORMS and tuple(module.normalized_shape) != (features,):
        shape = tuple(module.normalized_shape)
        raise item.refuse(f"normalises the shape {shape}", f"the Linear before it gives {features} features")
    elif type(module) is nn.Dropout and module.p >= 1:
        raise item.refuse(f"has p={module.p}, which drops everything", "use a p below 1")


def _check_output(output: _Block) -> None:
    for item in (output.norm, output.activation, output.dropout):
        if item is not None and type(item.module) is not nn.Identity:
            remedy = "leave it out: a FeedForward's outputs are linear, a sigmoid belongs to the loss"
            raise item.refuse("stands after the last Linear, which is the output layer", remedy)


def _check_chain(blocks: list[_Block]) -> None:
    for before, after in pairwise(block.linear for block in blocks):
        given, taken = before.module.out_features, after.module.in_features
        if given != taken:
            raise after.refuse(f"takes {taken} features, module {before.name} gives {given}", "make them equal")
    items = [item for block in blocks for item in (block.linear, block.norm) if item is not None]
    first = blocks[0].linear.module.weight
    for item in items:
        for tensor in item.module.parameters():
            if (tensor.dtype, tensor.device) != (first.dtype, first.device):
                violated = f"is {tensor.dtype} on {tensor.device}, the first Linear {first.dtype} on {first.device}"
                raise item.refuse(violated, "convert the whole Sequential with .to(...)")


def _agreed(hidden: list[_Block]) -> dict[str, Any]:
    """The settings that all hidden layers share.

    Raises:
        ValueError: two layers that differ, naming the later one's module.
    """
    agreed: dict[str, tuple[Any, int]] = {}
    for number, block in enumerate(hidden, 1):
        for trait, (value, item) in block.traits.items():
            kept, where = agreed.setdefault(trait, (value, number))
            if value != kept:
                raise item.refuse(
                    f"gives hidden layer {number} the {trait} {value!r}, hidden layer {where} has {kept!r}",
                    "a FeedForward has one for all its hidden layers: make them equal",
                )
    return {trait: value for trait, (value, _) in agreed.items()}


def _eps(norm: Norm, dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if norm.eps is None else norm.eps  # RMSNorm's None means this


def _fill_linear(target: nn.Linear, source: nn.Linear, *, folded: bool) -> Tensor | None:
    """Copy weight and bias; returns the bias that has to go into the running mean instead."""
    target.weight.copy_(source.weight)
    if folded:
        return source.bias
    if source.bias is None:
        target.bias.zero_()
    else:
        target.bias.copy_(source.bias)
    return None


def _fill_norm(target: Norm, source: Norm, folded_bias: Tensor | None) -> None:
    target.load_state_dict(source.state_dict(), strict=False)
    if folded_bias is not None:
        assert isinstance(target, nn.BatchNorm1d)
        assert target.running_mean is not None
        target.running_mean -= folded_bias


def _copy_modes(net: FeedForward, sequential: nn.Sequential, hidden: list[_Block]) -> None:
    """The training flags, also where a norm or a dropout was frozen by itself."""
    net.train(sequential.training)
    for block, part in zip(hidden, net.parts(), strict=False):
        if block.norm is not None and part.norm is not None:
            part.norm.training = block.norm.module.training
    dropouts = [module for module in net.layers if isinstance(module, nn.Dropout)]
    for block, dropout in zip(hidden, dropouts, strict=False):
        if block.dropout is not None:
            dropout.training = block.dropout.module.training
