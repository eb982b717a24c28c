"""The views of a net's tensors that the native engine keeps between epochs: never of a tensor that was replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from wholebatch import FeedForward, kernels
from wholebatch.feedforward.data import prepare
from wholebatch.feedforward.engine import make_state
from wholebatch.feedforward.native import NativeEngine
from wholebatch.feedforward.settings import Loss, Optimizer
from wholebatch.feedforward.views import Views

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part is missing here")

LOSS, ADAM = Loss("cross_entropy"), Optimizer("adam", 0.05)


def make() -> NativeEngine:
    torch.manual_seed(0)
    return NativeEngine(FeedForward(5, (7,), 3), LOSS, ADAM, n_threads=1)


def train(engine: NativeEngine) -> None:
    random = np.random.default_rng(1)
    x, y = random.standard_normal((40, 5)), random.integers(0, 3, 40)
    data = prepare(x, y, None, engine.model.architecture, LOSS, torch.float32)
    engine.train_epoch(data, np.arange(40), np.array([0, 20, 40]), np.full(2, 0.05))


def weight_of(engine: NativeEngine) -> nn.Parameter:
    return engine.model.parts()[0].linear.weight


def swap_memory(engine: NativeEngine) -> None:
    weight_of(engine).data = 2 * weight_of(engine).data


def replace_parameter(engine: NativeEngine) -> None:
    engine.model.parts()[0].linear.weight = nn.Parameter(2 * weight_of(engine).detach())


def turn(engine: NativeEngine) -> None:
    weight_of(engine).data = (2 * weight_of(engine).data).T.contiguous().T
    assert not weight_of(engine).is_contiguous()


def write_in_place(engine: NativeEngine) -> None:
    weight_of(engine).detach().numpy()[:] *= 2


def replace_state(engine: NativeEngine) -> None:
    engine.optimizer_state = {name: tensor + 1 for name, tensor in engine.optimizer_state.items()}


def replace_one_state(engine: NativeEngine) -> None:
    name = next(iter(engine.optimizer_state))
    engine.optimizer_state[name] = engine.optimizer_state[name] + 1


CHANGES = [swap_memory, replace_parameter, turn, write_in_place, replace_state, replace_one_state]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_between_epochs_is_trained_on(change: Callable[[NativeEngine], None]):
    """As by an engine that never saw what was there before."""
    kept = make()
    train(kept)
    other = make()
    other.model.load_state_dict(kept.model.state_dict())
    other.optimizer_state = {name: tensor.clone() for name, tensor in kept.optimizer_state.items()}
    other.step = kept.step
    before = weight_of(kept).detach().clone()
    for engine in (kept, other):
        change(engine)
        train(engine)
    assert not torch.equal(weight_of(kept), before)
    for name, tensor in other.model.state_dict().items():
        assert torch.equal(kept.model.state_dict()[name], tensor), name
    for name, tensor in other.optimizer_state.items():
        assert torch.equal(kept.optimizer_state[name], tensor), name


def test_views_are_made_once_and_share_memory():
    net = FeedForward(5, (7,), 3)
    state = make_state(net, ADAM)
    views = Views(net.parts(), dict(zip(ADAM.state_names, ("first", "second"), strict=True)))
    first = views.of(state)
    assert views.of(state) is first
    assert len(first) == 3 * len(list(net.parameters()))
    for view in first:
        assert view.array is not None
        assert view.array.__array_interface__["data"][0] == view.tensor.data_ptr()
    again = copy.deepcopy(views)  # its arrays are copies, and no longer the tensors' memory
    assert all(view.array.__array_interface__["data"][0] == view.tensor.data_ptr() for view in again.of(state))  # type: ignore[union-attr]
