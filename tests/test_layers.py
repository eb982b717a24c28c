"""`wholebatch.BatchNorm*d` are PyTorch's: constructor, state, training and evaluation, numbers, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch
from wholebatch.layers import WholeBatchNorm

SHAPES = {"1d": (4, 3), "1d with length": (4, 3, 5), "2d": (4, 3, 5, 6), "3d": (2, 3, 2, 3, 2)}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "momentum and eps": {"momentum": 0.3, "eps": 1e-2},
    "cumulative": {"momentum": None},
    "no affine": {"affine": False},
    "no running statistics": {"track_running_stats": False},
}
# float32: torch and we sum in other orders, over at most 120 numbers of mean 5 and standard deviation 3.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def layers(which: str, **options: Any) -> tuple[nn.Module, WholeBatchNorm]:
    name = f"BatchNorm{which[:2]}"
    return getattr(nn, name)(3, **options), getattr(wholebatch, name)(3, **options)


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 5


def same_state(one: nn.Module, other: nn.Module) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, **CLOSE)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("which", SHAPES)
def test_steps_of_training_and_evaluation_are_torchs(which: str, options: dict[str, Any]) -> None:
    theirs, ours = layers(which, **options)
    for training in (True, True, False, True):
        theirs.train(training)
        ours.train(training)
        z = draw(SHAPES[which], int(training))
        g = draw(SHAPES[which], 7)
        found = []
        for layer in (theirs, ours):
            x = z.clone().requires_grad_()
            y = layer(x)
            y.backward(g)
            found.append((y, x.grad))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other, one, **CLOSE)
        same_state(theirs, ours)
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-4)  # sums of up to 120 terms of size 10


@pytest.mark.parametrize("which", SHAPES)
def test_they_load_each_others_state(which: str) -> None:
    theirs, ours = layers(which)
    theirs(draw(SHAPES[which]))
    ours.load_state_dict(theirs.state_dict())
    same_state(theirs, ours)
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, type(theirs))
    assert ours.extra_repr() == theirs.extra_repr()


@pytest.mark.parametrize("which", SHAPES)
@pytest.mark.parametrize("options", [OPTIONS["defaults"], OPTIONS["no affine"]], ids=["affine", "no affine"])
def test_the_number_of_channels_can_be_read_from_the_first_input(which: str, options: dict[str, Any]) -> None:
    lazy = getattr(wholebatch, f"LazyBatchNorm{which[:2]}")(activation="relu", **options)
    y = lazy(draw(SHAPES[which]))
    assert type(lazy) is getattr(wholebatch, f"BatchNorm{which[:2]}")
    assert lazy.num_features == 3
    assert bool((y >= 0).all())
    again = getattr(wholebatch, f"BatchNorm{which[:2]}")(3, activation="relu", **options)
    assert torch.equal(y, again(draw(SHAPES[which])))


def test_any_number_of_dimensions_where_torch_has_one_for_several_processes() -> None:
    layer = wholebatch.BatchNorm(3)
    for shape in ((4, 3), (4, 3, 2), (4, 3, 2, 2), (2, 3, 2, 2, 2, 2)):
        expected = nn.functional.batch_norm(draw(shape), None, None, layer.weight, layer.bias, True)
        torch.testing.assert_close(layer(draw(shape)), expected, **CLOSE)
    with pytest.raises(ValueError, match="at least 2D"):
        layer(torch.zeros(3))


@pytest.mark.parametrize(
    ("which", "shape"), [("1d", (3,)), ("1d", (2, 3, 4, 5)), ("2d", (2, 3, 4)), ("3d", (2, 3, 4, 5))], ids=str
)
def test_a_wrong_number_of_dimensions_is_told_in_torchs_words(which: str, shape: tuple[int, ...]) -> None:
    theirs, ours = layers(which)
    with pytest.raises(ValueError) as expected:
        theirs(torch.zeros(shape))
    with pytest.raises(ValueError) as found:
        ours(torch.zeros(shape))
    assert str(found.value) == str(expected.value)


def test_a_single_example_is_refused_before_anything_moves() -> None:
    _, ours = layers("2d")
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(torch.ones(1, 3, 1, 1))
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in before.items())
    assert ours.eval()(torch.ones(1, 3, 1, 1)).shape == (1, 3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("which", SHAPES)
def test_other_dtypes_keep_their_statistics_in_float32(which: str, dtype: torch.dtype) -> None:
    theirs, ours = layers(which)
    z = draw(SHAPES[which]).to(dtype)
    if dtype == torch.float64:
        theirs.double()
        ours.double()
    # Half types: both round a float32 result once, and the two float32 results are not the same in the last place.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(ours(z), theirs(z), rtol=4 * unit, atol=4 * unit)
    same_state(theirs, ours)
    assert ours.running_mean is not None
    assert ours.running_mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_memory_formats_and_strides_change_no_number_and_are_kept(dtype: torch.dtype) -> None:
    z = draw((4, 6, 5, 8)).to(dtype)
    forms = {
        "contiguous": z,
        "channels_last": z.to(memory_format=torch.channels_last),
        "transposed": z.transpose(2, 3).contiguous().transpose(2, 3),
        "a slice": torch.cat([z, z], 3)[..., 8:],
        "every second": torch.stack([z, z], -1)[..., 0],
        "expanded": z[:, :, :, :1].expand(4, 6, 5, 8),
    }
    g = draw((4, 6, 5, 8), 3).to(dtype)
    for name, form in forms.items():
        oracle = nn.BatchNorm2d(6).double()
        x = form.detach().double().requires_grad_()
        oracle(x).backward(g.double())
        ours = wholebatch.BatchNorm2d(6)
        leaf = form.detach().requires_grad_()
        y = ours(leaf)
        y.backward(g)
        assert leaf.grad is not None
        unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
        torch.testing.assert_close(
            y.double(), oracle(x), rtol=8 * unit, atol=16 * unit, msg=lambda m, n=name: f"{n}: {m}"
        )
        # A gradient of size 3, cancelled twice: eight roundings of numbers up to 10.
        torch.testing.assert_close(leaf.grad.double(), x.grad, rtol=16 * unit, atol=80 * unit)
        if name in ("contiguous", "channels_last"):
            assert y.stride() == form.stride()


def test_a_gradient_without_strides_or_in_another_format() -> None:
    z = draw((4, 3, 5, 6))
    found = []
    for layer in (nn.BatchNorm2d(3), wholebatch.BatchNorm2d(3)):
        nn.init.constant_(layer.weight, 0.7)
        leaf = z.to(memory_format=torch.channels_last).requires_grad_()
        (layer(leaf).sum() * 2).backward()
        one = leaf.grad
        leaf.grad = None
        layer(leaf).backward(draw((4, 3, 5, 6), 5))
        found.append((one, leaf.grad))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_copies_share_nothing_but_the_processes() -> None:
    class Two:
        def merge(self, moments: Any, meeting: Any) -> Any:
            return moments

        def sum(self, vectors: Tensor, meeting: Any) -> Tensor:
            return vectors.clone()

    sharing = Two()
    layer = wholebatch.BatchNorm2d(3, process_group=sharing, activation="relu")
    layer(draw((4, 3, 2, 2)))
    twin = copy.deepcopy(layer)
    assert twin.process_group is sharing
    assert twin.weight is not layer.weight
    same_state(layer, twin)
    assert torch.equal(layer(draw((4, 3, 2, 2), 1)), twin(draw((4, 3, 2, 2), 1)))
    with pytest.raises(TypeError, match=r"process_group Two belongs to running processes.*state_dict"):
        pickle.dumps(layer)


def test_a_pickled_layer_is_the_same_layer() -> None:
    layer = wholebatch.BatchNorm2d(3, process_group="world", activation="relu", save="input").eval()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert repr(twin) == repr(layer)
    assert "process_group='world', activation='relu', save='input'" in repr(twin)
    same_state(layer, twin)


def test_an_activation_with_parameters_belongs_to_the_layer() -> None:
    layer = wholebatch.BatchNorm2d(3, activation=nn.PReLU(3))
    assert "activation.weight" in layer.state_dict()
    layer(draw((4, 3, 2, 2))).sum().backward()
    assert layer.activation.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "wrong",
    [
        {"activation": "swish"},
        {"save": "output"},
        {"activation": 3.5},
        {"activation": nn.ReLU},
        {"process_group": "wrold"},
        {"process_group": 3.5},
    ],
)
def test_a_wrong_keyword_is_told_by_the_constructor(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"'swish'|'output'|float|pass a module: ReLU\(\)|'wrold'"):
        wholebatch.BatchNorm1d(3, **wrong)
