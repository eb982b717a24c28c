"""Parts in lockstep give what the undivided mini-batch gives: outputs, gradients, running statistics.

Tolerances: float64, statistics of some hundred numbers of size up to 100 and a few layers. A sum of n terms taken in
another order differs by up to n * eps of the sum of their sizes: 500 * 2e-16 = 1e-13 relative; three layers and their
derivatives multiply that by tens. 1e-11 relative to the largest entry leaves room, and the smallest mistake (a part's
own variance, n in place of n - 1) is above 1e-3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wholebatch

SIZES = [[7, 1, 5, 10], [0, 22, 1], [12, 11], [23], [0, 0, 23]]


class Net(nn.Module):
    """Convolutions, a layer used twice, one that averages cumulatively, one in evaluation mode, residual branches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.twice = wholebatch.BatchNorm2d(4)
        self.fused = wholebatch.BatchNorm2d(4, activation="relu", momentum=None)
        self.plain = wholebatch.BatchNorm2d(4, affine=False, track_running_stats=False)
        self.frozen = wholebatch.BatchNorm2d(4).eval()
        self.head = nn.Linear(4, 2)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        h = self.twice(self.first(x)).relu()
        h = h + self.twice(self.second(h)).relu_()
        h = self.fused(self.second(h), h)
        return self.frozen(self.plain(self.first(x)) + self.fused(h))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)).sin())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float = 1e-11) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def compare(
    net: nn.Module,
    x: Tensor,
    sizes: Sequence[int],
    *,
    loss: Callable[[Tensor], Tensor] = lambda y: y.square().sum(),
    offload: Any = "none",
    steps: int = 2,
    reference: nn.Module | None = None,
) -> None:
    """Some steps in lockstep and undivided: all is the same."""
    reference = copy.deepcopy(net) if reference is None else reference
    for _ in range(steps):
        ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
        outputs = wholebatch.lockstep(net, ours.split(list(sizes)), offload=offload)
        assert [len(y) for y in outputs] == list(sizes)
        y = reference(theirs)
        assert_same([torch.cat(outputs)], [y])
        loss(torch.cat(outputs)).backward()
        loss(y).backward()
        assert_same(
            [ours.grad, *(p.grad for p in net.parameters())], [theirs.grad, *(p.grad for p in reference.parameters())]
        )
        assert_same(list(net.buffers()), list(reference.buffers()))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_net_with_branches_and_layers_used_twice_is_as_undivided(sizes: list[int]) -> None:
    compare(Net(), 100 + draw(23, 3, 5, 5), sizes)


def test_parts_may_have_different_numbers_of_positions() -> None:
    net = nn.Sequential(nn.Conv1d(3, 4, 1), wholebatch.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 1)).double()
    reference = copy.deepcopy(net)
    parts = [draw(2, 3, 7, seed=1), draw(3, 3, 4, seed=2)]
    flat = torch.cat([part.movedim(1, 0).flatten(1).T for part in parts]).unsqueeze(2)
    outputs = wholebatch.lockstep(net, parts)
    torch.cat([y.square().sum().view(1) for y in outputs]).sum().backward()
    y = reference(flat)
    y.square().sum().backward()
    assert_same([torch.cat([o.movedim(1, 0).flatten(1).T for o in outputs]).unsqueeze(2)], [y])
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])
    assert_same(list(net.buffers()), list(reference.buffers()))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), wholebatch.BatchNorm1d(4, activation="leaky_relu")
        self.double()

    def forward(self, x: Tensor, mask: Tensor, *, residual: Tensor) -> Tensor:
        return self.norm(self.first(x), residual=residual, mask=mask)


def test_masks_and_residuals_and_inputs_by_keyword() -> None:
    net = Masked()
    reference = copy.deepcopy(net)
    x, mask = draw(12, 3), torch.arange(12) % 3 > 0
    ours, theirs = (draw(12, 4, seed=1).requires_grad_() for _ in range(2))
    sizes = [5, 3, 1, 3]
    parts = [
        {"x": a, "mask": m, "residual": r}
        for a, m, r in zip(x.split(sizes), mask.split(sizes), ours.split(sizes), strict=True)
    ]
    y, expected = torch.cat(wholebatch.lockstep(net, parts)), reference(x, mask, residual=theirs)
    assert_same([y], [expected])
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_same(
        [ours.grad, *(p.grad for p in net.parameters())], [theirs.grad, *(p.grad for p in reference.parameters())]
    )


@dataclass
class Answer:
    logits: Tensor
    note: str


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = wholebatch.BatchNorm1d(3).double()

    def forward(self, pair: dict[str, Tensor], scale: float) -> dict[str, Any]:
        y = self.norm(pair["a"] + pair["b"])
        return {"answer": Answer(y * scale, "kept"), "both": (y, [pair["a"]])}


def test_any_structure_goes_in_and_out() -> None:
    net = Structured()
    a, b = draw(6, 3), draw(6, 3, seed=1)
    parts = [({"a": p, "b": q}, 2.0) for p, q in zip(a.split([4, 2]), b.split([4, 2]), strict=True)]
    outputs = wholebatch.lockstep(net, parts)
    whole = copy.deepcopy(net)({"a": a, "b": b}, 2.0)
    assert [o["answer"].note for o in outputs] == ["kept", "kept"]
    assert_same([torch.cat([o["answer"].logits for o in outputs])], [whole["answer"].logits])
    assert_same([torch.cat([o["both"][0] for o in outputs])], [whole["both"][0]])
    assert torch.equal(outputs[1]["both"][1][0], a[4:])


def test_an_unused_output_counts_as_zero_gradient() -> None:
    net = Net()
    x = draw(12, 3, 5, 5)
    weights = torch.cat([torch.ones(5), torch.zeros(4), torch.ones(3)]).double()[:, None]
    reference = copy.deepcopy(net)
    outputs = wholebatch.lockstep(net, x.split([5, 4, 3]))
    (outputs[0].square().sum() + outputs[2].square().sum()).backward()
    (reference(x).square() * weights).sum().backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])


def test_dropout_draws_by_the_stated_rule() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.drop = nn.Linear(3, 5), wholebatch.BatchNorm1d(5), nn.Dropout(0.5)
            self.double()

        def forward(self, x: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
            h = self.first(x)
            h = self.drop(h) if masks is None else h * masks[0]
            h = self.norm(h)
            return self.drop(h) if masks is None else h * masks[1]

    net = Dropping()
    reference = copy.deepcopy(net)
    x, sizes = draw(9, 3), [4, 3, 2]
    torch.manual_seed(5)
    outputs = wholebatch.lockstep(net, x.split(sizes))
    after = torch.rand(3)

    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()))
    assert torch.equal(after, torch.rand(3))
    masks = []
    for part, size in enumerate(sizes):
        torch.manual_seed(seed + part)
        masks.append([net.drop(torch.ones(size, 5, dtype=torch.float64)) for _ in range(2)])
    whole = reference(x, tuple(torch.cat(pieces) for pieces in zip(*masks, strict=True)))
    assert_same([torch.cat(outputs)], [whole])
    torch.cat(outputs).square().sum().backward()
    whole.square().sum().backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])


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


def test_retained_graphs_and_parts_one_at_a_time() -> None:
    net = Net()
    reference = copy.deepcopy(net)
    x = draw(12, 3, 5, 5)
    outputs = wholebatch.lockstep(net, x.split([5, 4, 3]))
    for part, y in enumerate(outputs):  # the slow way, which is exact too
        y.square().sum().backward(retain_graph=part < 2)
    reference(x).square().sum().backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])

    outputs = wholebatch.lockstep(net, x.split([5, 4, 3]))
    outputs[0].square().sum().backward()
    with pytest.raises(RuntimeError, match=r"sum\(losses\)\.backward\(\)"):
        outputs[1].square().sum().backward()


def test_a_second_derivative_is_refused() -> None:
    x = draw(6, 3).requires_grad_()
    (y,) = wholebatch.lockstep(wholebatch.BatchNorm1d(3).double(), [x])
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_backward_inside_of_a_part_is_refused() -> None:
    norm = wholebatch.BatchNorm1d(3).double()

    def work(x: Tensor) -> Tensor:
        y = norm(x)
        y.square().sum().backward()
        return norm(y)

    with pytest.raises(RuntimeError, match="inside of one part"):
        wholebatch.lockstep(work, draw(6, 3).requires_grad_().split(3))
    assert norm.weight.grad is None
    assert norm.num_batches_tracked == 0
