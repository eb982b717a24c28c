"""Parts in lockstep give what the undivided mini-batch gives: outputs, gradients, running statistics."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch
from tests.undivided import Net, assert_same, compare, draw

SIZES = [[7, 1, 5, 10], [0, 22, 1], [12, 11], [23], [0, 0, 23]]


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
