"""``fold``: for inference, batch norms become part of the linear layer or convolution before them.

With running statistics batch norm is a fixed scale and shift per channel, and so::

    weight' = weight * gamma / sqrt(var + eps)      bias' = (bias - mean) * gamma / sqrt(var + eps) + beta

Only a batch norm *after* a linear map is folded. One before it could be folded into a Linear too, but not into a
convolution with padding (whose zeros it does not shift), so it is left, and named.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wholebatch.activations import resolve_activation
from wholebatch.conversion.convert import TWINS
from wholebatch.conversion.graph import Survey, survey
from wholebatch.layers import WholeBatchNorm

M = TypeVar("M", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_KNOWN = {*TWINS.keys(), *TWINS.values()}


@dataclass
class FoldReport:
    """What :func:`fold` did; ``print`` it.

    Attributes:
        folded: names of batch norms, and of what each is now part of.
        kept: names of batch norms that were not folded, and why.
    """

    folded: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.folded)} batch norms folded, {len(self.kept)} kept"]
        lines += [f"folded {name} into {', '.join(into)}" for name, into in self.folded.items()]
        return "\n".join([*lines, *(f"kept {name or 'the model'}: {reason}" for name, reason in self.kept.items())])


def fold(model: M) -> tuple[M, FoldReport]:
    """A copy of ``model`` for evaluation, with batch norms folded into the layers before them.

    Folded are batch norms of torch.nn and of wholebatch that follow a ``Linear``, ``Conv1d/2d/3d`` or
    ``ConvTranspose1d/2d/3d`` whose output goes nowhere else, as torch.fx shows. In the copy an ``Identity`` stands in
    the batch norm's place, or the activation that it was built with. What ``convert`` absorbed is done by its own
    module again. Weights are computed in float64 and rounded once. Outputs are equal to those of ``model.eval()``
    within rounding.

    A module whose forward cannot be traced is passed over; what is inside of it is traced on its own, and folded where
    its source shows that it calls its submodules as they are. Code outside the model's forward that uses a folded layer
    by itself gets what the layer now gives.

    A ``Linear`` is taken to give ``(N, C)``. For ``(N, C, L)`` with as many outputs ``L`` as channels ``C``, the one
    case that nothing in the model tells from it, use a ``Conv1d``.

    Args:
        model: in evaluation mode. It is not changed.

    Returns:
        The copy, and a report that gives a reason for each batch norm that was kept.

    Raises:
        TypeError: not a module, or DistributedDataParallel, which cannot be copied.
        ValueError: a lazy layer that has seen no input yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold takes a torch.nn.Module, and got a {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError("fold works on a copy, and DistributedDataParallel cannot be copied: fold model.module")
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc, no-untyped-call]
            raise ValueError(f"{name or 'the model'} is lazy and has seen no input yet: call the model once before")
    model = copy.deepcopy(model, _share_groups(model))
    report = FoldReport()
    graph = survey(model, training=(False,))
    batch_norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, batch_norm in batch_norms:
        found = _find_linear(batch_norm, graph)
        if isinstance(found, str):
            report.kept[name] = found
            continue
        for linear in found:
            _fold_into(linear, batch_norm)
        _replace(model, batch_norm, _what_stays(batch_norm))
        report.folded[name] = [graph.names[linear] for linear in found]
    return model, report


def _find_linear(batch_norm: _BatchNorm, graph: Survey) -> list[nn.Module] | str:
    """The layers that give ``batch_norm`` its inputs, all of which it can be folded into; or why it cannot."""
    if parametrize.type_before_parametrizations(batch_norm) not in _KNOWN:
        return f"its class {type(batch_norm).__name__} may compute something else"
    if batch_norm.training:
        return "it is in training mode, where it has no fixed statistics: call model.eval() before"
    if batch_norm.running_mean is None or batch_norm.running_var is None:
        return "it has no running statistics"
    doubt = graph.doubt(batch_norm)
    if doubt:
        return doubt
    found: dict[nn.Module, None] = {}
    for call in graph.calls[batch_norm]:
        source = call.args[0] if len(call.args) == 1 and not call.kwargs else None
        if not isinstance(source, Node):
            return "it is called with a mask or a residual"
        linear = graph.callees.get(source)
        if linear is None or parametrize.type_before_parametrizations(linear) not in _LINEAR:
            return f"what it follows is no linear layer or convolution: {_describe(source, linear, graph)}"
        found[linear] = None
    return next(filter(None, (_obstacle(linear, batch_norm, graph) for linear in found)), None) or list(found)


def _obstacle(linear: nn.Module, batch_norm: _BatchNorm, graph: Survey) -> str | None:
    """Why ``batch_norm`` cannot be folded into ``linear``, which it follows; None where it can."""
    doubt = graph.doubt(linear)
    if doubt:
        return f"it follows {graph.name(linear)}, and {doubt}"
    for call in graph.calls[linear]:
        if len(call.users) != 1 or graph.callees.get(next(iter(call.users))) is not batch_norm:
            return f"the output of {graph.name(linear)} goes elsewhere too"
    if isinstance(linear, nn.Linear) and isinstance(batch_norm, nn.BatchNorm2d | nn.BatchNorm3d):
        return f"{graph.name(linear)} acts on another dimension than the channels"
    channels = linear.out_features if isinstance(linear, nn.Linear) else linear.out_channels
    if channels != batch_norm.num_features:
        return f"{graph.name(linear)} gives {channels} features in another dimension than its {batch_norm.num_features}"
    return None


def _describe(source: Node, module: nn.Module | None, graph: Survey) -> str:
    if module is not None:
        return f"{graph.name(module)} ({type(module).__name__})"
    return "the input" if source.op == "placeholder" else str(getattr(source.target, "__name__", source.target))


@torch.no_grad()
def _fold_into(linear: Any, batch_norm: _BatchNorm) -> None:
    if parametrize.is_parametrized(linear):
        _settle(linear)
    weight, bias = linear.weight, linear.bias
    transposed = isinstance(linear, _TRANSPOSED)
    # A transposed convolution has its inputs first, and so each group's outputs only in that group's rows.
    groups = linear.groups if transposed else 1
    statistics = [batch_norm.running_mean, batch_norm.running_var, batch_norm.weight, batch_norm.bias]
    chunks = [_chunks(vector, groups) for vector in (bias, *statistics)]
    parts = [
        fuse_conv_bn_weights(rows, b, mean, var, batch_norm.eps, gamma, beta, transposed)
        for rows, b, mean, var, gamma, beta in zip(_chunks(weight, groups), *chunks, strict=True)
    ]
    for name, old, new in zip(("weight", "bias"), (weight, bias), zip(*parts, strict=True), strict=True):
        like = weight if old is None else old
        value = torch.cat(new).to(like.device, like.dtype)
        linear.register_parameter(name, nn.Parameter(value, like.requires_grad))


def _settle(module: Any) -> None:
    """Make parametrized tensors plain parameters, of the values that they have.

    Not by ``remove_parametrizations``: it changes the module's class, which a module shares with the one it was copied
    from.
    """
    found = {
        name: (getattr(module, name), any(p.requires_grad for p in parametrization.parameters()))
        for name, parametrization in module.parametrizations.items()
    }
    cls = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = cls
    for name, (value, requires_grad) in found.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad))


def _chunks(tensor: Tensor | None, groups: int) -> tuple[Any, ...]:
    # on the CPU, for not every device knows float64
    return (None,) * groups if tensor is None else tensor.to("cpu", torch.float64).chunk(groups)


def _what_stays(batch_norm: _BatchNorm) -> nn.Module:
    """What is done in the place of a folded batch norm; the module of an absorbed activation follows anyway."""
    if not isinstance(batch_norm, WholeBatchNorm) or batch_norm.marks:
        return nn.Identity()
    slope, function = resolve_activation(batch_norm.activation)
    if function is not None:
        return function if isinstance(function, nn.Module) else Function(function)
    return nn.Identity() if slope == 1 else nn.ReLU() if slope == 0 else nn.LeakyReLU(slope)


class Function(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.function(input)
        return result

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever the model has ``old``."""
    new.train(old.training)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a second name
            if child is old:
                setattr(parent, name, new)


def _share_groups(model: nn.Module) -> dict[int, Any]:
    """A memo with which deepcopy leaves process groups alone: they cannot be copied, and a copy shares them."""
    groups = (module.__dict__.get("process_group") for module in model.modules())
    return {id(group): group for group in groups if group is not None and not isinstance(group, str)}
