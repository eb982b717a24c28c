"""``accumulate`` does a step's forward, loss and backward as the undivided mini-batch would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch
from test_lockstep import assert_same, draw
from wholebatch.microbatches.offload import Offload


def make_net(outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    norms = wholebatch.BatchNorm1d(8), wholebatch.BatchNorm1d(8)
    return nn.Sequential(
        nn.Linear(3, 8), norms[0], nn.ReLU(), nn.Linear(8, 8), norms[1], nn.Linear(8, outputs)
    ).double()


def draw_labels(rows: int, classes: int = 4) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))


WEIGHTS = torch.tensor([1.0, 5.0, 0.25, 2.0], dtype=torch.float64)
LOSSES: list[tuple[Callable[[], Any], str]] = [
    (nn.CrossEntropyLoss, "whole"),
    (nn.CrossEntropyLoss, "mean"),
    (lambda: nn.CrossEntropyLoss(reduction="sum"), "whole"),
    (lambda: nn.CrossEntropyLoss(reduction="sum"), "sum"),
    (lambda: nn.CrossEntropyLoss(weight=WEIGHTS), "whole"),
    (lambda: nn.CrossEntropyLoss(ignore_index=1), "whole"),
    (lambda: nn.CrossEntropyLoss(ignore_index=1, weight=WEIGHTS, label_smoothing=0.1), "whole"),
    (lambda: lambda y, t: (y.softmax(0) - y.mean(0)).square().sum() + y[0, t[-1]], "whole"),  # between examples
]


@pytest.mark.parametrize("micro_batches", [1, 3, 8, 50])
@pytest.mark.parametrize(("make_loss", "reduction"), LOSSES)
def test_loss_gradients_and_statistics_are_those_of_the_undivided(
    make_loss: Callable[[], Any], reduction: Any, micro_batches: int
) -> None:
    net, loss_fn, x, y = make_net(), make_loss(), draw(23, 3), draw_labels(23)
    reference = copy.deepcopy(net)
    loss = wholebatch.accumulate(net, loss_fn, x, y, micro_batches, reduction=reduction)
    expected = loss_fn(reference(x), y)
    expected.backward()
    assert not loss.requires_grad
    assert_same([loss], [expected.detach()])
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])
    assert_same(list(net.buffers()), list(reference.buffers()))


@pytest.mark.parametrize("offload", ["none", "cpu", "recompute"])
def test_steps_of_an_optimizer_are_those_of_the_undivided(offload: Offload) -> None:
    net, loss_fn = make_net(), nn.CrossEntropyLoss()
    reference = copy.deepcopy(net)
    ours, theirs = (torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (net, reference))
    for step in range(5):
        x, y = draw(200, 3, seed=step), draw_labels(200)
        for model, optimizer in ((net, ours), (reference, theirs)):
            optimizer.zero_grad()
            if model is net:
                wholebatch.accumulate(net, loss_fn, x, y, 4, offload=offload)
            else:
                loss_fn(model(x), y).backward()
            optimizer.step()
    assert_same(list(net.state_dict().values()), list(reference.state_dict().values()))


def test_gradients_add_up_as_ever() -> None:
    net, x, y = make_net(), draw(8, 3), draw_labels(8)
    wholebatch.accumulate(net, nn.CrossEntropyLoss(), x, y, 2)
    once = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    wholebatch.accumulate(net, nn.CrossEntropyLoss(), x, y, 4)
    assert_same([p.grad for p in net.parameters()], [2 * g for g in once])


@dataclass(frozen=True)
class Answer:
    logits: Tensor
    parts: dict[str, Any]


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = wholebatch.BatchNorm1d(3).double(), nn.Linear(3, 4).double()

    def forward(self, x: Tensor, scale: Tensor, *, mask: Tensor) -> Answer:
        h = self.norm(x * scale, mask=mask)
        return Answer(self.last(h), {"hidden": [h, (h.square(),)], "name": "kept"})


@pytest.mark.parametrize("reduction", ["whole", "mean"])
def test_inputs_outputs_and_targets_of_any_structure(reduction: Any) -> None:
    net = Structured()
    reference = copy.deepcopy(net)
    inputs = {"x": draw(10, 3), "scale": torch.tensor(2.0).double(), "mask": torch.arange(10) % 4 > 0}
    targets = {"label": draw_labels(10), "hidden": (draw(10, 3, seed=2),)}

    def loss_fn(output: Answer, target: Any) -> Tensor:
        assert output.parts["name"] == "kept"
        hidden = (output.parts["hidden"][0] - target["hidden"][0]).square().mean()
        return nn.functional.cross_entropy(output.logits, target["label"]) + hidden

    loss = wholebatch.accumulate(net, loss_fn, inputs, targets, 3, reduction=reduction)
    expected = loss_fn(reference(**inputs), targets)
    expected.backward()
    assert_same([loss], [expected.detach()])
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])


def test_a_backward_of_ones_own() -> None:
    net, x, y = make_net(), draw(8, 3), draw_labels(8)
    reference = copy.deepcopy(net)
    wholebatch.accumulate(net, nn.CrossEntropyLoss(), x, y, 2, backward=lambda loss: (1024 * loss).backward())
    nn.CrossEntropyLoss()(reference(x), y).backward()
    assert_same(
        [p.grad for p in net.parameters()], [p.grad * 1024 for p in reference.parameters() if p.grad is not None]
    )


def test_other_batch_norms_are_converted_on_request() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double()
    reference, x, y = copy.deepcopy(net), draw(9, 3), draw_labels(9)
    with pytest.raises(TypeError, match=r"1 \(BatchNorm1d\)"):
        wholebatch.accumulate(net, nn.CrossEntropyLoss(), x, y, 3)
    wholebatch.accumulate(net, nn.CrossEntropyLoss(), x, y, 3, convert=True)
    nn.CrossEntropyLoss()(reference(x), y).backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])


@pytest.mark.parametrize("reduction", ["whole", "mean"])
def test_a_loss_that_fails_changes_nothing(reduction: Any) -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())

    def fail(y: Tensor, target: Tensor) -> Tensor:
        raise KeyError("the loss")

    with pytest.raises(KeyError):
        wholebatch.accumulate(net, fail, draw(8, 3), draw_labels(8), 2, reduction=reduction)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_backward_that_runs_none_is_told() -> None:
    net = make_net()
    with pytest.raises(ValueError, match=r"no gradient came to the loss.*scaler\.scale\(loss\)\.backward\(\)"):
        wholebatch.accumulate(
            net, nn.CrossEntropyLoss(), draw(8, 3), draw_labels(8), 2, backward=torch.amp.GradScaler("cpu").scale
        )
    assert all(p.grad is None for p in net.parameters())


SCALAR = make_net()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": draw_labels(7)}, "inputs have 8 rows and targets 7"),
        ({"inputs": (draw(8, 3), draw(4, 3))}, "inputs have 4, 8 rows"),
        ({"targets": 3}, "targets hold no tensor with rows"),
        ({"inputs": draw(0, 3), "targets": draw_labels(0)}, "0 examples"),
        ({"micro_batches": 0}, "micro_batches is 0"),
        ({"micro_batches": 8.0}, "micro_batches is 8.0; it must be a whole number"),
        ({"micro_batches": "8"}, "micro_batches is '8'"),
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"reduction": "mean", "loss_fn": nn.KLDivLoss(reduction="batchmean")}, "pass reduction='whole'$"),
        ({"reduction": "mean", "loss_fn": nn.CrossEntropyLoss(reduction="none")}, "reduced to one number"),
        ({"reduction": "sum"}, "CrossEntropyLoss has reduction='mean'"),
        ({"reduction": "mean", "loss_fn": nn.CrossEntropyLoss(reduction="sum")}, "has reduction='sum'"),
        ({"reduction": "mean", "loss_fn": nn.CrossEntropyLoss(weight=WEIGHTS)}, "class weights"),
        ({"reduction": "mean", "loss_fn": nn.CrossEntropyLoss(ignore_index=1)}, "are ignore_index"),
        ({"loss_fn": nn.CrossEntropyLoss(reduction="none")}, r"loss_fn returned a tensor \(8,\)"),
        ({"loss_fn": lambda y, t: y.sum(), "model": lambda x: SCALAR(x).sum()}, "without dimensions"),
    ],
)
def test_what_cannot_be_right_is_refused(arguments: dict[str, Any], message: str) -> None:
    usual = {
        "model": make_net(),
        "loss_fn": nn.CrossEntropyLoss(),
        "inputs": draw(8, 3),
        "targets": draw_labels(8),
        "micro_batches": 2,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        wholebatch.accumulate(**{**usual, **arguments})
