"""``fold``: equal outputs in evaluation, and a reason wherever a batch norm was kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

import wholebatch
from nets import Branching, ResNet18, images, logits, stir, transformers_resnet
from wholebatch.conversion import convert, fold

# The folded weights are rounded once more, and sums are taken in another order: some units of 2^-53 of sums whose
# terms are below 1e3 in these nets.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def count(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def same(model: nn.Module, x: Tensor) -> tuple[nn.Module, wholebatch.conversion.FoldReport]:
    model = stir(model.double()).eval()
    before = copy.deepcopy(model.state_dict())
    folded, report = fold(model)
    torch.testing.assert_close(logits(folded, x), logits(model, x), **CLOSE)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(report.folded) + len(report.kept) == count(model)
    assert count(folded) == len(report.kept)
    return folded, report


@pytest.mark.parametrize("ours", ["torch's", "converted", "absorbing"])
@pytest.mark.parametrize("make", [ResNet18, Branching, transformers_resnet, lambda: transformers_resnet("bottleneck")])
def test_whole_nets(make: Callable[[], nn.Module], ours: str) -> None:
    torch.manual_seed(0)
    model = make()
    if ours != "torch's":
        convert(model, activation=ours == "absorbing")
    _, report = same(model, images())
    expected = (
        {"norm": "the forward of the model (Branching) cannot be traced: TraceError: "} if make is Branching else {}
    )
    assert report.kept.keys() == expected.keys()
    assert all(reason.startswith(expected[name]) for name, reason in report.kept.items())


LINEAR: list[tuple[nn.Module, nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
    (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, affine=False), (5, 4)),
    (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (5, 4, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (5, 4, 7, 7)),
    (nn.Conv3d(4, 6, 2, bias=False), nn.BatchNorm3d(6, eps=0.1), (2, 4, 3, 3, 3)),
    (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (5, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (5, 4, 7, 7)),
    (nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6), (2, 4, 3, 3, 3)),
]


@pytest.mark.parametrize(("linear", "norm", "shape"), LINEAR, ids=lambda v: type(v).__name__)
def test_every_linear_layer(linear: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    folded, report = same(nn.Sequential(linear, norm), x)
    assert report.folded == {"1": ["0"]}
    assert type(folded[1]) is nn.Identity
    assert str(report) == "1 batch norms folded, 0 kept\nfolded 1 into 0"


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", nn.LeakyReLU(0.3), nn.Tanh(), torch.sin])
def test_the_activation_that_a_layer_was_built_with_stays(activation: wholebatch.activations.Activation) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), wholebatch.BatchNorm2d(4, activation=activation))
    _, report = same(model, images())
    assert report.folded == {"1": ["0"]}


def test_an_absorbed_activation_is_done_once_in_the_copy() -> None:
    model = convert(stir(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())), activation=True).eval()
    folded, _ = fold(model)
    assert type(folded[1]) is nn.Identity
    y = folded(images(dtype=torch.float32))
    assert y.min() == 0


def test_layers_used_together_several_times_are_folded() -> None:
    pair = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    _, report = same(nn.Sequential(pair, nn.Tanh(), pair), images())
    assert report.folded == {"0.1": ["0.0"]}
    shared = nn.BatchNorm2d(3)
    _, report = same(nn.Sequential(nn.Conv2d(3, 3, 3), shared, nn.Conv2d(3, 3, 3), shared), images())
    assert report.folded == {"1": ["0", "2"]}


def test_parametrized_weights_are_folded_as_they_are() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    folded, report = same(model, images())
    assert report.folded == {"1": ["0"]}
    assert not parametrize.is_parametrized(folded[0])
    assert parametrize.is_parametrized(model[0])


def test_types_formats_and_flags_of_parameters_stay() -> None:
    model = stir(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).eval()
    model = model.to(memory_format=torch.channels_last)
    model[0].to(torch.bfloat16).weight.requires_grad_(False)
    conv = fold(model)[0][0]
    assert conv is not model[0]
    assert conv.weight.dtype == conv.bias.dtype == torch.bfloat16
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv.weight.requires_grad
    assert not conv.training
    # one rounding, to bfloat16's half unit in the last place, from the weights in float64
    weight = model[0].weight.double()
    scale = model[1].weight.double() / (model[1].running_var.double() + model[1].eps).sqrt()
    exact = weight * scale.view(-1, 1, 1, 1)
    assert ((conv.weight.double() - exact).abs() <= 2**-8 * exact.abs()).all()


class Uses(nn.Module):
    def __init__(self, forward: Callable[[Uses, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.conv2, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.linear, self.relu = nn.Linear(8, 8), nn.ReLU()
        self.steps = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


KEPT: dict[str, tuple[Callable[[Uses, Tensor], Tensor], str]] = {
    "used again": (lambda n, x: (lambda y: n.bn(y) + y)(n.conv(x)), "the output of 'conv' goes elsewhere too"),
    "called again": (lambda n, x: n.bn(n.conv(x)) + n.conv(x), "the output of 'conv' goes elsewhere too"),
    "another partner": (
        lambda n, x: n.bn(n.conv(x)) + n.bn(n.relu(x)),
        "is no linear layer or convolution: 'relu' (ReLU)",
    ),
    "nothing before": (lambda n, x: n.conv(n.bn(x)), "is no linear layer or convolution: the input"),
    "a function before": (lambda n, x: n.bn(n.conv(x) + 1), "is no linear layer or convolution: add"),
    "weights used": (lambda n, x: n.bn(n.conv(x)) * n.conv.weight.mean(), "the parameters of 'conv' are used directly"),
    "not called": (lambda n, x: n.conv(x), "'bn' is not called in the model's forward"),
    "another dimension": (lambda n, x: n.bn(n.linear(x)), "'linear' acts on another dimension than the channels"),
    "not traceable": (
        lambda n, x: n.bn(n.conv(x)) if x.sum() != 1 else x,
        "the model (Uses) cannot be traced: TraceError",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_why_a_batch_norm_is_kept(case: str) -> None:
    forward, reason = KEPT[case]
    _, report = same(Uses(forward), images(4, 8))
    assert report.folded == {}
    assert reason in report.kept["bn"]
    assert "\n" not in report.kept["bn"]
    assert str(report) == f"0 batch norms folded, 1 kept\nkept bn: {report.kept['bn']}"


def test_why_a_batch_norm_is_kept_whatever_the_graph() -> None:
    class Own(nn.BatchNorm2d):
        pass

    def reason(change: Callable[[nn.Sequential], object]) -> str:
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
        change(model)
        return fold(model)[1].kept["1"]

    assert "training mode" in reason(lambda m: m.train())
    assert "no running statistics" in reason(
        lambda m: m.__setitem__(1, nn.BatchNorm2d(3, track_running_stats=False).eval())
    )
    assert "class Own" in reason(lambda m: m.__setitem__(1, Own(3).eval()))
    assert "'0' has hooks" in reason(lambda m: m[0].register_forward_hook(lambda *_: None))
    assert "'0' has hooks, or a forward set" in reason(lambda m: setattr(m[0], "forward", m[0].forward))
    assert "'1' has hooks" in reason(lambda m: m[1].register_forward_pre_hook(lambda *_: None))
    with pytest.raises(ValueError, match="1 is lazy and has seen no input yet"):
        fold(nn.Sequential(nn.Conv2d(3, 3, 1), nn.LazyBatchNorm2d()))
    with pytest.raises(TypeError, match="got a str"):
        fold("model")  # type: ignore[type-var]


def test_a_mask_keeps_it() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), wholebatch.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(self.conv(x), mask=x[:, :1] > 0)
            return y

    _, report = same(Masked(), images())
    assert report.kept == {"bn": "it is called with a mask or a residual"}


def test_distributed_data_parallel_is_told_from_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval())
        with pytest.raises(TypeError, match=r"fold model\.module"):
            fold(model)
        assert fold(model.module)[1].folded == {"1": ["0"]}
    finally:
        dist.destroy_process_group()
