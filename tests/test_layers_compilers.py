"""Our layers in what looks at a model from outside: torch.compile, torch.export, ONNX, torch.fx, autocast."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import wholebatch
from tests.twice import Twice
from wholebatch.traced import name_sharing


class Net(nn.Module):
    """Convolution, batch norm, activation, with a residual and, on request, a mask."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = wholebatch.BatchNorm2d(4, momentum=momentum, activation="relu")
        self.last = wholebatch.BatchNorm2d(4, activation="gelu")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm(self.first(x), mask=mask)
        return self.last(self.second(h), residual=h, mask=mask)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    torch.compiler.reset()
    return Net()


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def agree(compiled: nn.Module, net: nn.Module, twin: nn.Module, *inputs: Tensor) -> None:
    for _ in range(2):
        y, expected = compiled(*inputs), twin(*inputs)
        # The compiler may sum convolutions in another order: float32, a few dozen terms of size one.
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        y.square().mean().backward()
        expected.square().mean().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_holds_training(net: Net, backend: str) -> None:
    twin = copy.deepcopy(net)
    agree(torch.compile(net, fullgraph=True, backend=backend), net, twin, X)


def test_one_graph_holds_masks_cumulative_statistics_and_no_examples() -> None:
    torch.compiler.reset()
    net = Net(momentum=None)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    mask = torch.rand(4, generator=torch.Generator().manual_seed(0)) > 0.3
    agree(compiled, net, copy.deepcopy(net), X, mask)
    before = copy.deepcopy(net.state_dict())
    assert compiled(X[:0], mask[:0]).shape == (0, 4, 6, 6)
    assert torch.equal(net.norm.running_var, before["norm.running_var"])  # type: ignore[arg-type]


def test_a_mistake_is_told_through_the_compiler(net: Net) -> None:
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="more than 1 value per channel"):
        compiled(X[:1, :, :1, :1])


class SlottedTwice:
    """The same, to which nobody can refer weakly."""

    __slots__ = ()
    merge, sum = Twice.merge, Twice.sum


@pytest.mark.parametrize("kind", [Twice, SlottedTwice])
def test_a_graph_finds_its_sharing_again(kind: type) -> None:
    torch.compiler.reset()
    one, other = kind(), kind()
    nets = [wholebatch.BatchNorm1d(3, process_group=sharing) for sharing in (one, other, one)]
    assert len({name_sharing(net.process_group) for net in nets}) == 2
    z = torch.randn(4, 3)
    for net in nets:
        eager = copy.deepcopy(net)
        found = torch.compile(net, fullgraph=True, backend="aot_eager")(z)
        torch.testing.assert_close(found, eager(z), rtol=1e-6, atol=1e-6)  # two orders of the same roundings
        # 2 * M2 / (2 * 4 - 1): the count is that of both parts.
        expected = 0.9 + 0.1 * (2 * (z - z.mean(0)).square().sum(0) / 7)
        torch.testing.assert_close(net.running_var, expected, rtol=1e-6, atol=1e-6)


def test_names_of_sharings_are_not_given_again() -> None:
    sharing = Twice()
    name, there = name_sharing(sharing), weakref.ref(sharing)
    del sharing
    gc.collect()
    assert there() is None
    successor = Twice()
    assert name_sharing(successor) != name
    arguments = (torch.randn(4, 3), None, None, None, None, 1e-5, 1.0, name, "layer")
    with pytest.raises(ValueError, match="compiled with is gone"):
        torch.ops.wholebatch.batch_norm(*arguments)


def test_the_operator_keeps_torchs_rules_for_operators() -> None:
    z = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    residual = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    for slope, mask in ((1.0, None), (0.0, None), (1.0, torch.rand(4, 1, 5) > 0.3)):
        arguments = (z, weight, bias, residual, mask, 1e-5, slope, "", "layer")
        torch.library.opcheck(torch.ops.wholebatch.batch_norm.default, arguments)


def test_evaluation_is_exported(net: Net, tmp_path: Path) -> None:
    net(X)
    net.eval()
    expected = net(X)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (X,), dynamic_shapes={"x": {0: batch}})
    torch.testing.assert_close(program.module()(X[:3]), expected[:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.compile(net, fullgraph=True, backend="aot_eager")(X), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
@pytest.mark.parametrize("dynamo", [True, False])
def test_evaluation_goes_to_onnx(net: Net, tmp_path: Path, dynamo: bool) -> None:
    net(X)
    net.eval()
    file = str(tmp_path / "net.onnx")
    torch.onnx.export(net, (X,), file, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(X).detach(), rtol=1e-4, atol=1e-5)
    assert not {node.domain for node in onnx.load(file).graph.node} & {"wholebatch"}


def test_fx_keeps_our_layers_whole(net: Net) -> None:
    traced = torch.fx.symbolic_trace(net, concrete_args={"mask": None})
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "first",
        "norm",
        "second",
        "last",
    ]
    torch.testing.assert_close(traced(X), copy.deepcopy(net)(X), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripting_is_refused_with_a_way_that_works() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    wholebatch.convert(net)
    for model in (net, wholebatch.BatchNorm1d(4)):
        with pytest.raises(TypeError, match=r"cannot be scripted.*revert\(copy\.deepcopy\(model\)\).*torch\.export"):
            torch.jit.script(model)
    z = torch.randn(5, 3)
    scripted = torch.jit.script(wholebatch.revert(copy.deepcopy(net)))
    torch.testing.assert_close(scripted(z), net(z), rtol=1e-6, atol=1e-6)  # torch's sums, in another order


def test_autocast_gives_half_types_and_statistics_in_float32(net: Net) -> None:
    twin = copy.deepcopy(net)
    theirs = nn.BatchNorm2d(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(X)
        expected = theirs(twin.first(X)).relu()
        found = twin.norm(twin.first(X))
    assert y.dtype == found.dtype == expected.dtype == torch.bfloat16
    # One rounding to bfloat16 of float32 results that differ in the last place.
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    torch.testing.assert_close(twin.norm.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)
