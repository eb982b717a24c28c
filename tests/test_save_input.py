"""``save="input"``: half the memory between forward and backward, and not a bit of any gradient changed."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch
from saved_inputs import Applied, Held, Layer, Net, assert_equal, chain, draw, train


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_eight_layers_hold_eight_activations_and_not_fifteen(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = draw(2, 4, 8, 8, dtype=dtype).to(memory_format=layout)
    one, held, gradients = x.nbytes, {}, {}
    for save in (None, "input"):
        net = chain(save).to(dtype)
        with Held(x, *net.parameters(), *net.buffers()) as counted:
            with wholebatch.saving_inputs():
                y = net(x)
            loss = y.square().sum()
            del y  # the loss holds it
            held[save] = counted.bytes(at_least=one)
            loss.backward()
        gradients[save] = [p.grad for p in net.parameters()]
    # 8 inputs of batch norm, the last output and, without it, 7 outputs that the next convolution saves.
    assert held == {None: 16 * one, "input": 9 * one}
    assert all(map(torch.equal, gradients[None], gradients["input"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_are_the_same_to_the_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, applied = train(None, dtype), Applied(monkeypatch)
    assert_equal(train("input", dtype), expected)
    assert applied.count > 8
    assert_equal(train("input", dtype, scope=nullcontext), expected)


def test_a_retained_graph_is_passed_backward_again() -> None:
    assert_equal(train("input", backwards=3), train(None, backwards=3))


def test_it_can_be_differentiated_twice() -> None:
    def differentiate(save: Any) -> list[Tensor]:
        net, x = Net(save).double(), draw(3, 4, 6, 6, dtype=torch.float64).requires_grad_()
        with wholebatch.saving_inputs():
            y = net(x)
            (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return [slope, *torch.autograd.grad(slope.square().sum(), [x, *net.parameters()])]

    assert_equal(differentiate("input"), differentiate(None))


def test_under_autocast() -> None:
    def call(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float()

    assert_equal(train("input", call=call), train(None, call=call))


def test_an_output_with_two_users_at_once_is_formed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    applied, x = Applied(monkeypatch), draw(3, 4, 2, 2).requires_grad_()
    with wholebatch.saving_inputs():
        y = Layer(save="input")(x * 1)
        z = y * y
        del y
    z.sum().backward()
    assert applied.count == 1


def test_a_chain_of_residuals_costs_each_output_a_bounded_number_of_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formed each from the one before, 16 blocks would take more than a hundred passes, and their square."""
    applied, blocks = Applied(monkeypatch), 16
    x = draw(2, 4, 4, 4)
    held, gradients = {}, {}
    for save in (None, "input"):
        torch.manual_seed(0)
        net = nn.ModuleList(m for _ in range(blocks) for m in (nn.Conv2d(4, 4, 1), Layer(save=save, activation="relu")))
        with Held(x, *net.parameters(), *net.buffers()) as counted:
            with wholebatch.saving_inputs():
                h = x
                for conv, norm in zip(net[::2], net[1::2], strict=True):
                    h = norm(conv(h), h)
                loss = h.sum()
            del h
            held[save] = counted.bytes(at_least=x.nbytes) // x.nbytes
            loss.backward()
        gradients[save] = [p.grad for p in net.parameters()]
    assert_equal(gradients["input"], gradients[None])
    # Of the outputs that are residuals of the next block every second one is kept.
    assert held == {None: 2 * blocks - 1, "input": blocks + blocks // 2 - 1}
    assert 0 < applied.count <= 3 * blocks


@pytest.mark.parametrize("which", ["weight", "input", "kept"])
def test_a_change_in_place_is_told_as_without(which: str) -> None:
    for scope, message in [(nullcontext, "modified by an inplace operation"), (wholebatch.saving_inputs, "clone it")]:
        layer, conv = Layer(save="input"), nn.Conv2d(4, 4, 1)
        x = draw(3, 4, 2, 2).requires_grad_() * 1
        with scope():
            y = conv(layer(x)).sigmoid()
        with torch.no_grad():
            {"weight": layer.weight, "input": x, "kept": y}[which].add_(1)
        with pytest.raises(RuntimeError, match=message):
            y.sum().backward()


def test_an_output_may_be_changed_once_a_recipe_stands_for_it() -> None:
    found = []
    for change in (False, True):
        torch.manual_seed(0)
        layer, conv = Layer(save="input"), nn.Conv2d(4, 4, 1)
        with wholebatch.saving_inputs():
            y = layer(draw(3, 4, 2, 2))
            loss = conv(y).square().sum()
            if change:
                y.add_(1)
        loss.backward()
        found.append([p.grad for p in (*layer.parameters(), *conv.parameters())])
    assert_equal(found[1], found[0])


def test_nothing_outlives_the_graph() -> None:
    x = draw(2, 4, 8, 8)
    net, one, two = Net("input"), Layer(save="input"), Layer(save="input")

    def call(x: Tensor) -> Tensor:
        z = net.convs[0](x)
        # Outputs whose residual is their own input, or made from it: plans that hold each other would stay.
        return net(x).sum() + one(two(z) * 1, z).sin().sum() + one(z, z).sin().sum() + one(z, two(z)).sin().sum()

    gc.disable()  # by counting references alone, without waiting for the collector
    try:
        for passed_backward in (True, False):
            with wholebatch.saving_inputs(), Held(*net.parameters(), *net.buffers(), x) as counted:
                for _ in range(2):
                    loss = call(x[..., :6, :6].contiguous())
                    assert counted.bytes(at_least=1000) > 0
                    if passed_backward:
                        loss.backward()
                        net.zero_grad(set_to_none=True)
                    del loss
                    assert counted.bytes(at_least=1000) == 0
    finally:
        gc.enable()


def test_what_comes_to_lie_where_an_output_was_is_not_taken_for_it() -> None:
    """The output goes, its plan stays with the graph; were only its address kept, another tensor would get that."""
    layer, x, graphs = Layer(save="input"), draw(3, 4, 2, 2).requires_grad_(), []
    with wholebatch.saving_inputs():
        for _ in range(50):
            graphs.append(layer(x * 1).sum())  # holds the plan, not the output
            other = torch.ones(3, 4, 2, 2).requires_grad_() + 0
            (slope,) = torch.autograd.grad((other * other).sum(), other)
            assert (slope == 2).all()
