"""Parts in lockstep within what people put around a model: autocast, no gradients, hooks, checkpoints, compilers."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wholebatch
from tests.undivided import Net, assert_same, compare, draw


def test_autocast_around_and_inside() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 8), wholebatch.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                h = self.norm(self.first(x))
                assert h.dtype == torch.bfloat16
                with torch.autocast("cpu", enabled=False):
                    h = self.norm(h.float() * 2)
                    assert h.dtype == torch.float32
                return self.last(h)

    torch.manual_seed(0)
    net = Mixed()
    reference = copy.deepcopy(net)
    x = torch.randn(12, 3)
    outputs = wholebatch.lockstep(net, x.split([5, 4, 3]))
    assert not torch.is_autocast_enabled("cpu")
    expected = reference(x)
    # bfloat16 has 8 bits: a sum that rounds differently moves a stored number by 2^-8 of it, once or twice over.
    torch.testing.assert_close(torch.cat(outputs).float(), expected.float(), rtol=2**-6, atol=2**-6)
    torch.cat(outputs).float().square().sum().backward()
    expected.float().square().sum().backward()
    # Against the largest gradient: that of a bias before a batch norm is 0, and rounding noise is what is found.
    largest = max(float(p.grad.abs().max()) for p in reference.parameters())
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2**-4, atol=2**-5 * largest)
    with torch.autocast("cpu", torch.bfloat16):
        outer = wholebatch.lockstep(lambda x: net.last(net.norm(net.first(x))), x.split([5, 7]))
        assert outer[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda mode: mode.__name__
)
def test_regions_without_gradients(mode: Any) -> None:
    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.norm, self.other = nn.Linear(3, 4), wholebatch.BatchNorm1d(4), wholebatch.BatchNorm1d(4)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.student(x))
            with mode():
                goal = self.other(self.student(x * 2)).sin()
                assert torch.is_grad_enabled() == (mode is torch.enable_grad)
                assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
            return self.norm(h) * goal.clone()

    compare(Teacher().double(), draw(9, 3), [4, 3, 2])
    net, x = Net(), draw(6, 3, 5, 5)
    reference = copy.deepcopy(net)
    with mode():
        outputs = wholebatch.lockstep(net, x.split([4, 2]))
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert_same([torch.cat(outputs)], [reference(x)])
    assert outputs[0].requires_grad == (mode is torch.enable_grad)
    assert_same(list(net.buffers()), list(reference.buffers()))


def test_hooks_and_modes_of_a_part_stay_with_it() -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class CountingCalls(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.sines = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.sines += func is torch.sin
            return func(*args, **(kwargs or {}))

    class CountingOps(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.sines = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.sines += func is torch.ops.aten.sin.default
            return func(*args, **(kwargs or {}))

    packed: list[tuple[int, int]] = []
    norm = wholebatch.BatchNorm1d(3).double()
    counts = {}

    def work(part: int, x: Tensor) -> Tensor:
        if part == 1:  # it alone stands in contexts while all wait
            hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(len(t)), t)[1], lambda t: t)
            with hooks, CountingCalls() as calls, CountingOps() as ops:
                y = torch.sin(norm(torch.sin(x)))
            counts.update(calls=calls.sines, ops=ops.sines)
            return y
        return torch.sin(norm(torch.sin(x)))

    parts = [(part, draw(4 + part, 3).requires_grad_()) for part in range(3)]
    outputs = wholebatch.lockstep(work, parts)
    assert counts == {"calls": 2, "ops": 2}
    assert set(packed) <= {5, 3}  # its 5 rows, or vectors of 3 channels
    assert packed.count(5) == 3  # both sines and z
    torch.cat(outputs).sum().backward()


def test_checkpoints_that_replay() -> None:
    class Checkpointed(Net):
        def features(self, x: Tensor) -> Tensor:
            run = partial(checkpoint, use_reentrant=False, context_fn=wholebatch.replay)
            h = run(lambda x: self.twice(self.first(x)).relu(), x)
            h = h + run(lambda h: self.fused(self.second(h), h), h)
            return run(lambda h: self.twice(run(lambda h: self.plain(self.second(h)), h)), h)

    class Plain(Net):
        def features(self, x: Tensor) -> Tensor:
            h = self.twice(self.first(x)).relu()
            h = h + self.fused(self.second(h), h)
            return self.twice(self.plain(self.second(h)))

    compare(Checkpointed(), draw(12, 3, 5, 5), [5, 4, 3], reference=Plain())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_that_would_recompute_a_part_alone_are_refused(reentrant: bool) -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    x = draw(12, 3, 5, 5).requires_grad_()

    def work(x: Tensor) -> Tensor:
        return checkpoint(net.features, x, use_reentrant=reentrant)

    with pytest.raises(ValueError, match=r"context_fn=wholebatch\.replay"):
        wholebatch.lockstep(work, x.split([6, 6]))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_saving_inputs_only() -> None:
    net = Net()
    for module in net.modules():
        if isinstance(module, wholebatch.BatchNorm2d):
            module.save = "input"
    reference = copy.deepcopy(net)
    x = draw(12, 3, 5, 5)

    def work(x: Tensor) -> Tensor:
        with wholebatch.saving_inputs():
            return net(x)

    torch.cat(wholebatch.lockstep(work, x.split([5, 4, 3]))).square().sum().backward()
    reference(x).square().sum().backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler asks for it
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiled_blocks_and_models(backend: str) -> None:
    torch._dynamo.reset()
    net = Net()
    reference = copy.deepcopy(net)
    x = draw(12, 3, 5, 5)
    alone = copy.deepcopy(net)
    compiled = torch.compile(alone, backend=backend)
    compiled(x)  # with batch norm in the graph
    alone.load_state_dict(net.state_dict())
    alone.zero_grad()
    compare(compiled, x, [5, 4, 3], reference=reference, steps=1)
    block = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), backend=backend, fullgraph=True)
    compare(nn.Sequential(block, wholebatch.BatchNorm1d(4).double(), nn.ReLU()), draw(9, 3), [4, 3, 2])
