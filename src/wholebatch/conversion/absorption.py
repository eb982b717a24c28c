"""A batch norm that does the activation which follows it, and the activation module that lets its output pass.

The module stays where it is, for one ReLU often follows many things: in a residual net the batch norm and the addition.
So the batch norm marks what it has activated, and the module returns a marked input as it is, without the mark (an
addition in place would keep it on the sum). On anything else it does what it did. A compiler does not follow such
marks: under torch.compile and torch.export each does its own part, and the compiler may join them.

Only the module's call is saved this way; ``F.relu(bn(x))`` in a forward would still be done, so it is left alone.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Node, Proxy

from wholebatch.conversion.graph import Survey, hooked
from wholebatch.layers import WholeBatchNorm, call_whole


class PassingReLU(nn.ReLU):
    """``torch.nn.ReLU`` that returns as it is what a batch norm has activated already."""

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # as the batch norm before it does: the mark is there when the graph runs
            return call_whole(self, input)
        return input if _take_mark(input, 0.0) else super().forward(input)


class PassingLeakyReLU(nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` that returns as it is what a batch norm has activated already, with the same slope."""

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # as the batch norm before it does: the mark is there when the graph runs
            return call_whole(self, input)
        return input if _take_mark(input, self.negative_slope) else super().forward(input)


def _take_mark(input: Tensor, slope: float) -> bool:
    if getattr(input, "activated_with", None) != slope:
        return False
    input.activated_with = None  # type: ignore[attr-defined]
    return True


PASSING: dict[type[nn.Module], type[nn.Module]] = {nn.ReLU: PassingReLU, nn.LeakyReLU: PassingLeakyReLU}


def find_activations(batch_norm: nn.Module, graph: Survey) -> list[nn.Module]:
    """The ReLU or leaky ReLU modules to which ``batch_norm`` hands its output, if to nothing else; else none."""
    if graph.doubt(batch_norm):
        return []
    found: list[nn.Module] = []
    for call in graph.calls[batch_norm]:
        users = list(call.users)
        activation = graph.callees.get(users[0]) if len(users) == 1 else None
        if len(call.args) != 1 or call.kwargs or activation is None or not _takes(users[0], call):
            return []
        if type(activation) not in {*PASSING, *PASSING.values()} or hooked(activation):
            return []
        found.append(activation)
    return found if len({_slope(activation) for activation in found}) == 1 else []


def absorb(batch_norm: WholeBatchNorm, activations: list[nn.Module]) -> None:
    """Let ``batch_norm`` do what ``activations`` do, and let these pass what it did."""
    slope = _slope(activations[0])
    batch_norm.activation = "relu" if slope == 0 else nn.LeakyReLU(slope)
    batch_norm.marks = True
    for activation in activations:
        activation.__class__ = PASSING.get(type(activation), type(activation))


def release(module: nn.Module) -> None:
    """Undo :func:`absorb`, on either side of it."""
    if isinstance(module, WholeBatchNorm) and module.marks:
        del module.activation  # a module among its children where it is leaky
        module.activation = None
        del module.marks
    for plain, passing in PASSING.items():
        if type(module) is passing:
            module.__class__ = plain


def _takes(user: Node, call: Node) -> bool:
    return user.args == (call,) and not user.kwargs


def _slope(activation: nn.Module) -> float:
    return float(activation.negative_slope) if isinstance(activation, nn.LeakyReLU) else 0.0
