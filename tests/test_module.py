"""``FeedForward`` is an ordinary ``nn.Module``: any PyTorch loop trains it, and to the same numbers as its engines."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from wholebatch import Architecture, FeedForward, Loss, Optimizer, Training, kernels

X = np.random.default_rng(0).normal(size=(60, 5))
Y = np.random.default_rng(1).integers(0, 3, 60)


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize(("norm", "position"), [("batch", "before"), ("batch", "after"), ("layer", "before")])
def test_a_loop_of_ones_own_ends_where_fit_ends(engine: str, norm: str, position: str) -> None:
    if engine == "native" and not kernels.native_available():
        pytest.skip("the compiled part is missing here")
    torch.manual_seed(0)
    fitted = FeedForward(5, (8, 4), 3, norm=norm, norm_position=position, dtype=torch.float64)
    own = copy.deepcopy(fitted)
    fitted.fit(
        X,
        Y,
        loss=Loss("cross_entropy"),
        optimizer=Optimizer("adam", 0.01),
        training=Training(epochs=3, batch_size=20, shuffle=False),
        engine=engine,
    )
    optimizer = torch.optim.Adam(own.parameters(), 0.01)
    own.train()
    for _ in range(3):
        for x, y in zip(torch.from_numpy(X).split(20), torch.from_numpy(Y).split(20), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x), y).backward()
            optimizer.step()
    for name, value in own.state_dict().items():
        # 9 updates of size 0.01 in float64, each relative to its gradient: Adam's division magnifies a rounding of
        # 1e-16 by at most 1 / eps = 1e8 where a gradient is about 0
        torch.testing.assert_close(fitted.state_dict()[name], value, rtol=0, atol=9 * 0.01 * 1e-8)


def test_it_is_saved_copied_and_described_as_any_module() -> None:
    net = FeedForward(5, (8,), 3, activation="gelu", dropout=0.2)
    other = FeedForward.of(net.architecture)
    assert not torch.equal(net.layers[0].weight, other.layers[0].weight)
    other.load_state_dict(net.state_dict())
    x = torch.from_numpy(X).float()
    assert torch.equal(net.eval()(x), other.eval()(x))
    assert net.architecture == Architecture(5, (8,), 3, activation="gelu", dropout=0.2)
    assert "activation='gelu'" in repr(net)
    assert net.layers[0].bias is None  # beta takes its place
    assert FeedForward(5, (8,), 3, norm="none").layers[0].bias is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (8,), 3), "in_features is 0"),
        ((5, (8, 0), 3), r"hidden_layer_sizes\[1\] is 0"),
        ((5, (8,), -1), "out_features is -1"),
    ],
)
def test_sizes_below_one_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeedForward(*arguments)
