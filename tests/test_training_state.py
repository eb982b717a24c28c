"""A run between two epochs: states that stay as they are, and runs that resume from one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from small_problem import X, Y, copy_of, net, same
from wholebatch import FeedForward, Optimizer, Training
from wholebatch.feedforward.training import History, State


def test_a_state_does_not_change_as_training_goes_on(engine: str):
    model = net()
    states: list[State] = []
    model.fit(X, Y, training=Training(epochs=3, batch_size=30), engine=engine, after_epoch=states.append)
    assert [len(state.history.epochs) for state in states] == [1, 2, 3]
    assert [state.step for state in states] == [3, 6, 9]
    weights = [state.tensors["model.layers.0.weight"] for state in states]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], model.state_dict()["layers.0.weight"])


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_resumed_run_is_an_undisturbed_one(engine: str, kind: Any):
    """With early stopping, schedule and dropout; the plain part goes through JSON as a checkpoint's would."""
    optimizer = Optimizer(kind, 0.05, momentum=0.9 if kind == "sgd" else 0.0)
    settings: dict[str, Any] = {
        "validation": (X[60:], Y[60:]),
        "optimizer": optimizer,
        "training": Training(epochs=6, batch_size=20, patience=5, schedule="one_cycle", seed=5),
        "engine": engine,
    }
    whole = net(dropout=0.3)
    states: list[State] = []
    expected = whole.fit(X[:60], Y[:60], after_epoch=states.append, **settings)
    for pause in (1, 4, 6):
        plain = json.loads(json.dumps(states[pause - 1].values()))
        resumed = State(History(**plain["history"]), plain["step"], states[pause - 1].tensors)
        again: list[State] = []
        model = FeedForward.of(whole.architecture, dtype=torch.float64)
        history = model.fit(X[:60], Y[:60], resume=resumed, after_epoch=again.append, **settings)
        assert len(again) == 6 - pause
        timeless = [{k: v for k, v in row.items() if "second" not in k} for row in history.epochs]
        assert timeless == [{k: v for k, v in row.items() if "second" not in k} for row in expected.epochs]
        assert (history.best_epoch, history.best_score) == (expected.best_epoch, expected.best_score)
        assert same(copy_of(model), copy_of(whole))
        assert len(resumed.history.epochs) == pause  # the state that was given stays as it is


def test_a_state_of_another_optimizer_is_refused(engine: str):
    states: list[State] = []
    net().fit(X, Y, training=Training(epochs=1, batch_size=30), engine=engine, after_epoch=states.append)
    sgd = Optimizer("sgd", 0.1, momentum=0.5)
    with pytest.raises(ValueError, match=r"10 tensors kept and 5 needed.*exp_avg\.layers\.0\.weight"):
        net().fit(X, Y, training=Training(epochs=2, batch_size=30), engine=engine, optimizer=sgd, resume=states[0])
