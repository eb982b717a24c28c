"""``convert`` and ``revert``: the same model before and after, whatever it is made of."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import wholebatch
from nets import Branching, ResNet18, gradients, images, stir, transformers_resnet
from wholebatch.conversion import convert, revert
from wholebatch.layers import WholeBatchNorm
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": ResNet18,
    "transformers basic": transformers_resnet,
    "transformers bottleneck": lambda: transformers_resnet("bottleneck"),
    "branching": Branching,
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)),
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU())),
        nn.Flatten(),
        nn.LazyLinear(3),
        nn.BatchNorm1d(3, momentum=None),
    ),
}
# Each of at most 20 layers rounds in another order than torch's, by some units of 2^-53, and the loss of a ReLU net is
# as steep in its inputs as its weights make it: 1e-10 is what the project promises for whole trainings.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    model(images(2, dtype=torch.float32))
    return stir(model.double())


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_gives_the_same_numbers(name: str, activation: bool) -> None:
    model = build(name)
    ours = convert(copy.deepcopy(model), activation=activation)
    assert batch_norms(ours)
    assert all(isinstance(m, WholeBatchNorm) for m in batch_norms(ours))
    for training in (True, False):
        theirs_y, theirs = gradients(model.train(training), images())
        ours_y, found = gradients(ours.train(training), images())
        torch.testing.assert_close(ours_y, theirs_y, **CLOSE)
        torch.testing.assert_close(found, theirs, **CLOSE)
        torch.testing.assert_close(ours.state_dict(), model.state_dict(), **CLOSE)


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_revert_gives_back_the_very_same_model(name: str, activation: bool) -> None:
    model = build(name)
    before = [(m, type(m), dict(m.__dict__), dict(m._modules)) for m in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    assert convert(model, activation=activation) is model
    assert revert(model) is model
    for (module, cls, attributes, children), now in zip(before, model.modules(), strict=True):
        assert now is module
        assert type(now) is cls
        assert now.__dict__.keys() == attributes.keys()
        assert all(now.__dict__[key] is value for key, value in attributes.items())
        assert now._modules == children
    assert all(a is b for a, b in zip([*model.parameters(), *model.buffers()], tensors, strict=True))


def test_state_dicts_go_both_ways() -> None:
    model = build("resnet18")
    ours = convert(build("resnet18"), activation=True)
    assert list(ours.state_dict()) == list(model.state_dict())
    stir(ours, seed=1)
    model.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(images()), model.eval()(images()), **CLOSE)


def test_what_holds_a_layer_goes_on_holding_it() -> None:
    model = build("nested")
    layer = model[0][1]
    layer.weight.requires_grad_(False)
    layer.eval()
    calls: list[str] = []
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    weight = layer.weight
    convert(model, activation=True)
    assert model[0][1] is layer
    assert type(layer) is wholebatch.BatchNorm2d
    assert layer.weight is weight
    assert optimizer.param_groups[0]["params"][0] is weight
    assert not layer.weight.requires_grad
    assert not layer.training
    assert model[0][0].training
    assert layer.activation is None  # for its hook is to see the output as it was
    model(images())
    assert calls == ["before", "after"]


def test_a_layer_used_twice_stays_one_and_has_its_first_name() -> None:
    shared = nn.BatchNorm1d(5)
    model = nn.Sequential(nn.Linear(5, 5), shared, nn.Linear(5, 5), shared).double()
    twin = copy.deepcopy(model)
    convert(model)
    assert model[1] is model[3] is shared
    assert shared.name == "1"
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gradients(model, x), gradients(twin, x), **CLOSE)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **CLOSE)


def test_the_model_may_be_a_batch_norm() -> None:
    layer = nn.BatchNorm3d(4, eps=0.1, momentum=0.3)
    assert convert(layer) is layer
    assert type(layer) is wholebatch.BatchNorm3d
    assert (layer.eps, layer.momentum) == (0.1, 0.3)
    assert type(revert(layer)) is nn.BatchNorm3d


def test_to_convert_twice_is_harmless_and_may_change_settings() -> None:
    model = convert(build("resnet18"), "world", activation=True)
    ours = ("process_group", "activation", "save", "name", "marks", "_origin")
    before = {layer: [getattr(layer, key) for key in ours] for layer in batch_norms(model)}
    convert(model)
    convert(model, activation=True)
    for layer in batch_norms(model):
        assert [getattr(layer, key) for key in ours] == before[layer]
    convert(model, save="input")
    assert {layer.save for layer in batch_norms(model)} == {"input"}
    assert {layer.process_group for layer in batch_norms(model)} == {"world"}
    assert {type(layer) for layer in batch_norms(revert(model))} == {nn.BatchNorm2d}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_work_and_revert(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = convert(build("resnet18"), activation=True)
    twin = copied(model)
    torch.testing.assert_close(gradients(twin, images()), gradients(model, images()), rtol=0, atol=0)
    assert {type(layer) for layer in batch_norms(revert(twin))} == {nn.BatchNorm2d}
    assert {type(layer) for layer in batch_norms(model)} == {wholebatch.BatchNorm2d}
    torch.testing.assert_close(gradients(twin, images()), gradients(model, images()), **CLOSE)


def test_sync_batch_norm_keeps_its_ranks() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm2d(3))
    convert(model)
    assert type(model[0]) is wholebatch.BatchNorm
    assert model[0].process_group == "world"
    assert model[1].process_group is None
    x = images(dtype=torch.float32)
    torch.testing.assert_close(model.eval()(x), nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()(x))
    with pytest.raises(ValueError, match="init_process_group"):
        model.train()(x)
    revert(model)
    assert type(model[0]) is nn.SyncBatchNorm
    assert model[0].process_group is None
    assert not hasattr(model[1], "process_group")


def test_lazy_layers_become_ours_at_their_first_input() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(momentum=0.5), nn.ReLU())
    convert(model)
    assert type(model[1]) is wholebatch.LazyBatchNorm2d
    assert type(revert(model)[1]) is nn.LazyBatchNorm2d
    convert(model, activation=True)
    x = images(dtype=torch.float32)
    model(x)
    assert type(model[1]) is wholebatch.BatchNorm2d
    z = model[0](x)
    torch.testing.assert_close(model[1].running_mean, 0.5 * z.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert type(revert(model)[1]) is nn.BatchNorm2d


class Alone:
    """Shares with nobody, and can be copied as little as a process group."""

    def merge(self, moments: Moments, meeting: Meeting) -> Moments:
        return moments

    def sum(self, vectors: Tensor, meeting: Meeting) -> Tensor:
        return vectors

    def __deepcopy__(self, memo: object) -> Alone:
        raise TypeError("processes are not copied")


def test_parametrized_layers_stay_parametrized() -> None:
    class Double(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    model = stir(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double())
    parametrize.register_parametrization(model[1], "weight", Double())
    x = images().mean((2, 3))
    expected, keys = gradients(model, x), list(model.state_dict())
    layer = convert(model, Alone())[1]
    assert isinstance(layer, wholebatch.BatchNorm1d)
    assert parametrize.is_parametrized(layer, "weight")
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(gradients(copy.deepcopy(model), x), expected, **CLOSE)
    assert parametrize.type_before_parametrizations(revert(model)[1]) is nn.BatchNorm1d
    torch.testing.assert_close(gradients(model, x), expected, **CLOSE)


def test_strangers_are_left_and_named() -> None:
    class Halved(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / 2

    model = nn.ModuleDict({"known": nn.BatchNorm2d(3), "stranger": Halved(3)})
    with pytest.warns(UserWarning, match=r"1 batch norms .* stranger \(Halved\)"):
        convert(model)
    assert type(model["stranger"]) is Halved
    assert type(model["known"]) is wholebatch.BatchNorm2d


def test_a_layer_whose_forward_was_replaced_is_left_and_named() -> None:
    """As the accelerate library does; the replacement goes on to torch's own forward, whatever the class is."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].forward = functools.partial(nn.BatchNorm2d.forward, model[0])
    with pytest.warns(UserWarning, match=r"0 \(BatchNorm2d, its forward set on the object\)"):
        convert(model, activation=True)
    assert type(model[0]) is nn.BatchNorm2d


def test_other_norms_are_no_batch_norms() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm(3))
    before = list(map(type, model))
    convert(model)
    assert list(map(type, model)) == before


def test_ours_from_the_start_become_torchs() -> None:
    model = nn.Sequential(
        wholebatch.BatchNorm1d(3), wholebatch.BatchNorm1d(3, activation="relu"), wholebatch.BatchNorm(3)
    )
    with pytest.warns(UserWarning, match=r"2 batch norms .*: 1 \(BatchNorm1d\), 2 \(BatchNorm\)"):
        revert(model)
    assert [type(layer) for layer in model] == [nn.BatchNorm1d, wholebatch.BatchNorm1d, wholebatch.BatchNorm]


def test_what_is_refused() -> None:
    wrong: Any = "a model"
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, and got a str"):
        convert(wrong)
    model = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="'wrold'"):
        convert(model, "wrold")
    with pytest.raises(TypeError, match="process_group is of type int"):
        convert(model, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'inputs'"):
        convert(model, save="inputs")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="activation is 'relu'; it must be True or False"):
        convert(model, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"revert takes a torch\.nn\.Module, and got a NoneType"):
        revert(None)  # type: ignore[type-var]
    assert type(model) is nn.BatchNorm1d


def test_convert_warns_of_nothing_where_all_is_known() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        revert(convert(build("transformers basic"), activation=True))
