"""Absorbing an activation: only where nobody else sees the batch norm's output, and never twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import Branching, ResNet18, gradients, images, stir
from wholebatch.conversion import convert, revert
from wholebatch.conversion.absorption import PassingLeakyReLU, PassingReLU

CLOSE = {"rtol": 1e-11, "atol": 1e-11}  # one or two layers in float64


class Net(nn.Module):
    """Its forward is a function of these layers, so that each case below is one line."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu, self.leaky, self.leaky2 = nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.LeakyReLU(0.3)
        self.steps = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


def add_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.leaky(net.bn(x))
    y += x  # on the very tensor that had been marked
    return net.leaky(y)


def in_training_alone(net: Net, x: Tensor) -> Tensor:
    y = net.bn(x)
    return net.relu(y) + y.mean() if net.training else net.relu(y)


ABSORBED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "followed by a module": lambda net, x: net.relu(net.bn(x)),
    "leaky": lambda net, x: net.leaky(net.bn(x)),
    "the module also follows other things": lambda net, x: net.relu(net.relu(net.bn(x)) + net.relu(-x)),
    "addition in place": add_in_place,
    "called twice": lambda net, x: net.leaky(net.bn(net.leaky(net.bn(x)) + x)),
}
LEFT: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a second user": lambda net, x: (lambda y: net.relu(y.clone()) + net.relu(y) + y)(net.bn(x)),
    "a second user in training alone": in_training_alone,
    "an output": lambda net, x: net.bn(x),
    "a function, which could not be spared": lambda net, x: F.relu(net.bn(x)),
    "two slopes": lambda net, x: net.leaky2(net.bn(x)) + net.leaky(net.bn(x)),
    "something between": lambda net, x: net.relu(net.bn(x) + 1),
    "its other call": lambda net, x: net.relu(net.bn(x)) + net.bn(x),
}


@pytest.mark.parametrize("case", [*ABSORBED, *LEFT])
def test_it_is_absorbed_where_the_graph_is_certain_and_changes_no_number(case: str) -> None:
    torch._dynamo.reset()  # it would tire of one forward that is another in each case
    net = stir(Net({**ABSORBED, **LEFT}[case]).double())
    ours = convert(copy.deepcopy(net), activation=True)
    assert (ours.bn.activation is not None) == (case in ABSORBED)
    for training in (True, False):
        twin = copy.deepcopy(ours.train(training))
        expected = gradients(net.train(training), images(4, 5))
        torch.testing.assert_close(gradients(ours.train(training), images(4, 5)), expected, **CLOSE)
        if case in ABSORBED:
            compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(gradients(compiled, images(4, 5))[0], expected[0], **CLOSE)
    revert(ours)
    assert list(map(type, ours.modules())) == list(map(type, net.modules()))
    torch.testing.assert_close(gradients(ours.train(), images(4, 5)), gradients(net.train(), images(4, 5)), **CLOSE)


def test_a_passing_module_does_nothing_where_the_batch_norm_did_it() -> None:
    net = convert(Net(ABSORBED["followed by a module"]), activation=True)
    given: list[Tensor] = []
    net.relu.register_forward_hook(lambda _, args, y: given.extend((args[0], y)))
    net(images(4, 5, dtype=torch.float32))
    assert given[0] is given[1]
    assert given[0].min() == 0
    assert net.relu(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]  # anything else is activated


def test_which_activations_of_a_residual_net_are_absorbed() -> None:
    net = convert(ResNet18(), activation=True)
    absorbed = {name for name, m in net.named_modules() if getattr(m, "activation", None) is not None}
    assert absorbed == {"bn1", *(f"stages.{stage}.{block}.bn1" for stage in range(4) for block in range(2))}


def test_hooks_keep_a_layer_as_it_is() -> None:
    for hooked in ("bn", "relu"):
        net = Net(ABSORBED["followed by a module"])
        net.get_submodule(hooked).register_forward_hook(lambda *_: None)
        assert convert(net, activation=True).bn.activation is None


def test_the_inside_of_a_module_that_cannot_be_traced() -> None:
    net = convert(Branching(), activation=True)
    assert net.body[1].activation == "relu"
    assert type(net.body[2]) is PassingReLU


class Takes(Branching):
    """Goes over the layers of a part, and keeps what is between."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            raise ValueError("no examples")
        kept = []
        for layer in self.body:
            x = layer(x)
            kept.append(x)
        return torch.cat([part.flatten(1) for part in kept], 1)


class Parted(Branching):
    """A part that is a module of its own, of which a layer is called from outside, in one way or another."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Net(ABSORBED["followed by a module"])


class Reaches(Parted):
    """By its name."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.sum() > 0 else self.part.bn(x)


class Hidden(Parted):
    """Without its name."""

    def forward(self, x: Tensor) -> Tensor:
        return next(self.part.children())(x) if x.sum() > 0 else self.part(x)


class Helped(Parted):
    """In a method that forward calls."""

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x) if x.sum() > 0 else self.part(x)

    def helper(self, x: Tensor) -> Tensor:
        return self.part.bn(x)


def take(net: Parted, x: Tensor) -> Tensor:
    y: Tensor = net.part.bn(x)
    return y


class HandsOn(Parted):
    """In a function that gets the whole module."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.sum() > 0 else take(self, x)


def wrapping(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward_of(*args: Any) -> Tensor:
        return method(*args)

    return forward_of


class Wrapped(Parted):
    """Behind a decorator that does not tell what it wraps."""

    @wrapping
    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.sum() > 0 else self.part.bn(x)


class Built(Parted):
    """In code that is in no file."""

    exec("def forward(self, x): return self.part(x) if x.sum() > 0 else self.part.bn(x)")


class Picks(Branching):
    """Layers out of a part in a list of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([self.body])

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.parts[0](x)
        return self.parts[0][1](self.parts[0][0](x))


@pytest.mark.parametrize(
    ("cls", "path"),
    [
        (Takes, "body.1"),
        (Picks, "body.1"),
        *((cls, "part.bn") for cls in (Reaches, Hidden, Helped, HandsOn, Wrapped, Built)),
    ],
)
def test_what_code_that_cannot_be_traced_takes_apart_stays(cls: type[Branching], path: str) -> None:
    net = stir(cls().double())
    ours = convert(copy.deepcopy(net), activation=True)
    assert ours.get_submodule(path).activation is None
    for x in (images(), -images()):
        torch.testing.assert_close(ours(x), net(x), **CLOSE)


def test_a_forward_that_was_set_on_the_object_may_do_anything() -> None:
    net = Parted()
    net.forward = lambda x: net.part.bn(x)  # type: ignore[method-assign]
    assert convert(net, activation=True).part.bn.activation is None


def test_surveying_a_model_leaves_no_trace_in_it() -> None:
    class Marks(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            self.seen.append(x)
            self.count += 1
            torch.rand(1)
            return self.relu(self.bn(x))

    net = Marks(ABSORBED["followed by a module"])
    net.count, net.seen = 0, []
    net.eval()
    torch.manual_seed(3)
    before, random = dict(net.__dict__), torch.get_rng_state()
    convert(net, activation=True)
    assert net.bn.activation == "relu"
    assert {**net.__dict__} == before
    assert (net.count, net.seen) == (0, [])
    assert not net.training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_of_torch_fx_does_a_leaky_relu_once(training: bool) -> None:
    """A ReLU would hide it: done twice it is the same."""
    net = nn.Sequential(nn.BatchNorm2d(3), nn.LeakyReLU(0.3), nn.LeakyReLU(0.3)).double().train(training)
    expected = copy.deepcopy(net)(images(4, 5))
    traced = torch.fx.symbolic_trace(convert(net, activation=True))
    assert type(net[1]) is PassingLeakyReLU
    torch.testing.assert_close(traced(images(4, 5)), expected, **CLOSE)


def test_torch_fx_can_trace_a_model_with_absorbed_activations() -> None:
    net = convert(stir(Net(ABSORBED["the module also follows other things"]).double()), activation=True).eval()
    traced = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(traced(images(4, 5)), net(images(4, 5)), rtol=0, atol=0)
    assert type(net.leaky) is not PassingLeakyReLU
