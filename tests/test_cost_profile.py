"""The profile of a person's step: what it finds, what it leaves as it was, and what an injected delay must show."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wholebatch
from wholebatch.cost.profile.change import Change
from wholebatch.cost.profile.clock import HostClock
from wholebatch.cost.profile.measuring import profile
from wholebatch.cost.profile.norms import find_norms
from wholebatch.cost.profile.probes import Probes, Visit
from wholebatch.cost.profile.record import Profile
from wholebatch.cost.profile.rounds import Kind, arrange, plan_rounds
from wholebatch.cost.profile.summary import estimate

SLEEP = 0.02


class Sleep(nn.Module):
    """Sleeps in forward, and so long in backward too."""

    class _Nap(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            time.sleep(SLEEP)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            time.sleep(SLEEP)
            return g

    def forward(self, x: Tensor) -> Tensor:
        return self._Nap.apply(x)


class SlowNorm(nn.LayerNorm):
    """Sleeps inside of the layer, forward and backward."""

    def forward(self, input: Tensor) -> Tensor:
        return Sleep._Nap.apply(super().forward(input))


class Training:
    """A step of a small net, with everything it changes at hand."""

    def __init__(self, *layers: nn.Module, features: int = 8) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, features), *layers, nn.Linear(features, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.x, self.y = torch.randn(16, 4), torch.randn(16, 2)
        self.steps = 0

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        noise = 1e-3 * (torch.rand(()).item() + random.random() + np.random.rand())  # noqa: NPY002
        (self.model(self.x + noise) - self.y).square().mean().backward()
        self.optimizer.step()
        self.steps += 1


def measure(function: Callable[[], Any], rounds: int = 6, **more: Any) -> Profile:
    measured = profile(function, "tests:step", rounds=rounds, **more)
    assert measured is not None
    return measured


def look(model: nn.Module, x: Tensor) -> list[Visit]:
    """What probes see in one forward and backward pass."""
    probes = Probes(find_norms([model]), HostClock())
    probes.attach()
    probes.begin()
    model(x).sum().backward()
    probes.detach()
    return probes.end()[0]


def test_time_beside_the_norms_is_not_theirs() -> None:
    training = Training(nn.BatchNorm1d(8), Sleep(), nn.LayerNorm(8), nn.RMSNorm(8))
    probes = Probes(find_norms([training.model]), HostClock())
    probes.attach()
    probes.begin()
    start = time.perf_counter()
    training()
    seconds = time.perf_counter() - start
    probes.detach()
    visits, _ = probes.end()
    assert len(visits) == 3
    assert all(visit.forward > 0 and (visit.backward or 0) > 0 for visit in visits)
    assert sum(visit.forward + (visit.backward or 0) for visit in visits) < seconds - 2 * SLEEP


def test_time_within_a_norm_is_its_own() -> None:
    measured = measure(Training(nn.BatchNorm1d(8), Sleep(), SlowNorm(8)))
    assert [layer.name for layer in measured.layers] == ["1", "3"]
    assert measured.step.low >= 4 * SLEEP
    quick, slow = measured.ranks[0].layers
    assert quick.backward is not None
    assert slow.backward is not None
    assert min(quick.forward.low, quick.backward.low) > 0
    assert min(slow.forward.low, slow.backward.low) >= SLEEP
    assert measured.layers[1].share.high > measured.layers[0].share.low


def test_nothing_is_changed_for_good() -> None:
    training = Training(
        nn.BatchNorm1d(8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(inplace=True)
    )
    training.model[1].register_forward_hook(lambda *_: None)
    training()  # before, and then as profile's first call
    norm = training.model[1]
    before = {}

    def once() -> None:
        training()
        if training.steps == 2:
            before.update(state(training))

    measured = measure(once)
    assert training.steps > 20
    after = state(training)
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, after[key]), key
        else:
            assert value == after[key], key
    assert type(norm) is nn.BatchNorm1d
    assert measured.conversion is not None
    assert measured.conversion.layers == ["1"]


def state(training: Training) -> dict[str, Any]:
    """Everything that a step changes, and how the modules are."""
    found: dict[str, Any] = {f"state {k}": v.clone() for k, v in training.model.state_dict().items()}
    found |= {f"gradient {k}": p.grad.clone() for k, p in training.model.named_parameters() if p.grad is not None}
    for number, values in training.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number} {k}": copy.deepcopy(v) for k, v in values.items()}
    found |= {"torch": torch.get_rng_state(), "random": random.getstate(), "numpy": repr(np.random.get_state())}  # noqa: NPY002
    for name, module in training.model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
        found[f"module {name}"] = type(module), sorted(module.__dict__), [list(each) for each in hooks], module.training
    return found


def test_a_failing_step_leaves_the_model_as_it_was() -> None:
    training = Training(nn.BatchNorm1d(8))

    def fail() -> None:
        training()
        if type(training.model[1]) is not nn.BatchNorm1d:
            raise RuntimeError("no conversion here")

    with pytest.raises(ValueError, match=r"tests:step raised RuntimeError: no conversion here \(.*test_cost_profile"):
        measure(fail)
    assert type(training.model[1]) is nn.BatchNorm1d
    assert not training.model[1]._forward_hooks
    assert "process_group" not in training.model[1].__dict__


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(8), wholebatch.BatchNorm1d(8), nn.InstanceNorm1d(8), nn.GroupNorm(2, 8)]
)
def test_an_activation_in_place_after_the_layer(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 1), norm, nn.ReLU(inplace=True))
    x = torch.randn(4, 3, 5)
    expected = [torch.autograd.grad(model(x).sum(), model[0].weight)[0], model[1](torch.ones(4, 8, 5)).relu().shape]
    (visit,) = look(model, x)
    assert torch.equal(model[0].weight.grad, expected[0])
    assert visit.backward is not None
    assert visit.backward > 0
    # 160 numbers of 4 bytes: read and written; then the gradient and the input read, and the input's gradient written.
    assert (visit.forward_bytes, visit.backward_bytes) == (2 * 640, 3 * 640)


def test_a_layer_used_twice_counts_twice() -> None:
    norm = nn.LayerNorm(8)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 8), norm)
    (visit,) = look(model, torch.randn(2, 4))
    assert visit.calls == 2
    assert visit.forward_bytes == 2 * 2 * 64
    assert visit.backward_bytes == 2 * 3 * 64


def test_an_input_without_gradient_has_none_written() -> None:
    (visit,) = look(nn.Sequential(nn.BatchNorm1d(4)), torch.randn(8, 4))
    assert visit.backward_bytes == 2 * 8 * 4 * 4


def test_checkpointed_layers_are_called_again() -> None:
    class Checkpointed(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return checkpoint(super().forward, input, use_reentrant=False)

    (visit,) = look(Checkpointed(nn.Linear(4, 8), nn.LayerNorm(8)), torch.randn(2, 4))
    assert visit.calls == 2
    assert visit.backward is not None


def test_all_kinds_of_norms_are_found_and_no_others() -> None:
    class LlamaRMSNorm(nn.Module):
        pass

    model = nn.ModuleDict(
        {
            "batch": nn.BatchNorm2d(2),
            "sync": nn.SyncBatchNorm(2),
            "instance": nn.InstanceNorm3d(2),
            "group": nn.GroupNorm(1, 2),
            "layer": nn.LayerNorm(2),
            "rms": nn.RMSNorm(2),
            "response": nn.LocalResponseNorm(2),
            "ours": wholebatch.BatchNorm1d(2),
            "named": LlamaRMSNorm(),
            "weight": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "linear": nn.Linear(2, 2),
        }
    )
    found = find_norms([model])
    assert [norm.name for norm in found] == list(model)[:-2]
    assert [str(norm) for norm in found][:3] == ["BatchNorm2d(2)", "SyncBatchNorm(2)", "InstanceNorm3d(2)"]


def test_two_models_of_one_class_are_told_apart() -> None:
    models = [nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.BatchNorm1d(2))]
    assert [norm.name for norm in find_norms(models)] == ["Sequential#1.0", "Sequential#2.0"]


def test_setup_that_returns_its_step() -> None:
    training = Training(nn.BatchNorm1d(8))
    calls = []

    def setup() -> Callable[[], None]:
        calls.append("setup")
        return training

    measured = measure(setup)
    assert calls == ["setup"]
    assert measured.models == ["Sequential"]
    assert measured.rounds == 6


def test_wholebatch_layers_are_reverted_and_come_back() -> None:
    training = Training(nn.BatchNorm1d(8), nn.ReLU())
    wholebatch.convert(training.model, activation=True, save="input")
    before = state(training)
    measured = measure(training)
    assert measured.conversion is not None
    assert (measured.conversion.way, measured.conversion.layers) == ("revert", ["1"])
    after = state(training)
    assert {key: after[key] for key in after if key.startswith("module")} == {
        key: before[key] for key in before if key.startswith("module")
    }
    assert training.model[1].activation == "relu"


def test_a_change_goes_there_and_back() -> None:
    training = Training(nn.BatchNorm1d(8), nn.ReLU())
    change = Change([training.model], find_norms([training.model]))
    assert type(training.model[1]) is nn.BatchNorm1d
    members = dict(training.model[1].__dict__)
    change.apply()
    assert type(training.model[1]) is wholebatch.BatchNorm1d
    training()
    change.undo()
    assert type(training.model[1]) is nn.BatchNorm1d
    assert {key for key, value in training.model[1].__dict__.items() if value is not members[key]} == set()


def test_nothing_to_convert() -> None:
    assert measure(Training(nn.LayerNorm(8))).conversion is None
    assert measure(Training(nn.BatchNorm1d(8)), converting=False).conversion is None


def test_rounds_are_balanced() -> None:
    kinds = [Kind(changed, probed) for changed in (False, True) for probed in (False, True)]
    orders = [arrange(kinds, number) for number in range(8)]
    for kind in kinds:
        assert [order.index(kind) for order in orders].count(0) == 2
        assert sum(order.index(kind) for order in orders) == 8 * 1.5


def test_rounds_fit_into_the_time() -> None:
    assert plan_rounds(1.0, 4, 1, None, 20.0) == (6, 1, False)
    assert plan_rounds(1.0, 4, 2, 9, 20.0) == (9, 1, True)
    rounds, burst, settled = plan_rounds(0.005, 2, 1, None, 1.0)
    assert settled
    assert 0.8 <= rounds * 2 * (burst + 1) * 0.005 <= 1.0


def test_intervals_hold_the_median_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = estimate(generator.exponential(size=15))
        assert found is not None
        held += found.low <= np.log(2) <= found.high
    # Binomial with p of at least 0.95: fewer than 0.91 * 400 has a probability below 1e-3.
    assert held >= 0.91 * 400
    assert estimate([0.1] * 5) is None
