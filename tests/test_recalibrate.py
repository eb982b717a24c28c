"""``recalibrate``: running statistics that are those of all inputs together, against float64 over the whole data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import wholebatch
from nets import ResNet18, images, stir
from ranks import run_ranks
from wholebatch.conversion import convert, recalibrate

# Merged in another grouping than the oracle's two passes: some units of 2^-53 per merged part.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def uneven(x: Tensor) -> list[Tensor]:
    """Batches whose means lie far apart, of different sizes: an average of their variances would be wrong."""
    return list(x.sort(0).values.split([2, 5, 3, x.shape[0] - 10]))


def rows(n: int = 16, features: int = 5) -> Tensor:
    return torch.randn(n, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 10


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(5),
        nn.Linear(5, 4),
        nn.Dropout(0.5),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Linear(4, 3),
        nn.BatchNorm1d(3),
    )
    stir(model.double())
    return model


def watched(model: nn.Module, batches: list[Tensor], evaluate: bool) -> dict[str, Tensor]:
    """The inputs of every batch norm over all batches; each normalises by its batch unless ``evaluate``."""
    model = copy.deepcopy(model).eval()
    seen: dict[str, list[Tensor]] = {name: [] for name in layers(model)}
    for name, layer in layers(model).items():
        layer.train(not evaluate)
        layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach()))
    for batch in batches:
        model(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def assert_statistics(model: nn.Module, inputs: dict[str, Tensor], **tolerances: float) -> None:
    for name, layer in layers(model).items():
        x = inputs[name].double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(layer.running_mean.double(), x.mean(1), **(tolerances or CLOSE))
        torch.testing.assert_close(layer.running_var.double(), x.var(1), **(tolerances or CLOSE))  # the unbiased one


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("make", [net, lambda: ResNet18(2).double()])
def test_one_pass(make: Callable[[], nn.Module], ours: bool) -> None:
    torch.manual_seed(0)
    model = make()
    if ours:
        convert(model, activation=True)
    batches = uneven(rows() if isinstance(model, nn.Sequential) else images(14))
    expected = watched(model, batches, evaluate=False)
    assert recalibrate(model, batches) is model
    assert_statistics(model, expected)
    assert {layer.num_batches_tracked.item() for layer in layers(model).values()} == {4}


@pytest.mark.parametrize("ours", [False, True])
def test_layer_by_layer_gives_what_evaluation_sees(ours: bool) -> None:
    model = convert(net(), activation=True) if ours else net()
    batches = uneven(rows())
    recalibrate(model, batches, layer_by_layer=True)
    assert_statistics(model, watched(model, batches, evaluate=True))


def test_layer_by_layer_in_a_residual_net() -> None:
    torch.manual_seed(0)
    model = ResNet18(2).double()
    batches = uneven(images(14))
    recalibrate(model, batches, layer_by_layer=True)
    assert_statistics(model, watched(model, batches, evaluate=True))


def test_a_layer_used_twice_is_measured_over_both_calls() -> None:
    norm = nn.BatchNorm1d(5)
    model = nn.Sequential(norm, nn.Linear(5, 5), norm).double()
    batches = uneven(rows())
    expected = watched(model, batches, evaluate=False)
    recalibrate(model, batches)
    assert_statistics(model, expected)
    assert norm.num_batches_tracked == 8


def test_far_from_zero_in_float32() -> None:
    """At mean 1e4 and std 1, E[x^2] - E[x]^2 in float32 would have no correct digit."""
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) + 1e4
    model = nn.Sequential(nn.BatchNorm1d(5))
    recalibrate(model, x.split(16))
    # What is stored is rounded once (2^-24); deviations and their squares are rounded in float32 (some units of 2^-24).
    assert_statistics(model, {"0": x}, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "nested", "forward"])
def test_what_a_loader_may_give(kind: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, data: Tensor, scale: Tensor | None = None) -> Tensor:
            result: Tensor = self.norm(data if scale is None else data * scale)
            return result

    make: dict[str, Callable[[Tensor], Any]] = {
        "tuple": lambda x: (x, torch.zeros(len(x))),
        "list": lambda x: [x],
        "dict": lambda x: {"data": x / 2, "scale": torch.tensor(2.0)},
        "nested": lambda x: ({"data": x}, "label"),
        "forward": lambda x: {"x": x},
    }
    model = Named().double()
    forward = (lambda model, batch: model(batch["x"])) if kind == "forward" else None
    recalibrate(model, [make[kind](x) for x in uneven(rows())], forward=forward, device="cpu")
    assert_statistics(model, {"norm": rows()})


def test_batches_go_to_the_device() -> None:
    given: list[str] = []
    batches = [{"x": [rows(4)], "name": "a"}]

    def forward(_: nn.Module, batch: Any) -> None:
        given.append(batch["x"][0].device.type)

    with pytest.warns(UserWarning, match="not called, and keep their statistics: the model"):
        recalibrate(nn.BatchNorm1d(5), batches, device="meta", forward=forward)
    assert given == ["meta"]


def test_what_a_mask_leaves_out_does_not_count() -> None:
    norm = wholebatch.BatchNorm1d(5).double()
    x, mask = rows(), torch.arange(16) % 3 > 0
    recalibrate(norm, [x], forward=lambda model, batch: model(batch, mask=mask))
    assert_statistics(norm, {"": x[mask]})
    y, positions = (
        torch.stack([rows(), -rows()], 2),
        torch.rand(16, 2, generator=torch.Generator().manual_seed(0)) > 0.5,
    )
    recalibrate(norm, [y], forward=lambda model, batch: model(batch, None, positions))
    assert_statistics(norm, {"": y.transpose(1, 2)[positions]})


def test_everything_else_is_as_before() -> None:
    model = convert(net(), "world")
    model[3].eval()
    model[3].momentum = None
    model[6] = nn.SyncBatchNorm(3).double()
    before = [(m, type(m), {**m.__dict__}) for m in model.modules()]
    weights = {name: p.clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    recalibrate(model, uneven(rows()))
    for module, cls, attributes in before:
        assert type(module) is cls
        assert {**module.__dict__} == attributes
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random)


def failing(batches: list[Tensor], after: int) -> Iterator[Tensor]:
    yield from batches[:after]
    raise OSError("the disk is gone")


class Failing:
    """A loader that fails in the second pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        yield from failing(uneven(rows()), 2) if self.passes == 2 else uneven(rows())


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_an_error_changes_nothing(layer_by_layer: bool) -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    loader: Any = Failing() if layer_by_layer else failing(uneven(rows()), 2)
    with pytest.raises(OSError, match="the disk is gone"):
        recalibrate(model, loader, layer_by_layer=layer_by_layer)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())


def test_what_is_refused_and_leaves_the_statistics() -> None:
    norm = stir(nn.BatchNorm1d(5).double())
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(ValueError, match="gave no batch"):
        recalibrate(norm, [])
    with pytest.raises(ValueError, match="not finite"):
        recalibrate(norm, [rows(), rows() * float("inf")])
    with pytest.raises(ValueError, match=r"the model saw 1 values per channel in all"):
        recalibrate(norm, [rows(1)], layer_by_layer=True)
    with pytest.raises(ValueError, match="an iterator ends after one"):
        recalibrate(norm, iter([rows()]), layer_by_layer=True)
    with pytest.raises(ValueError, match=r"init_process_group\(\) first"):
        recalibrate(norm, [rows()], "world")
    with pytest.raises(TypeError, match=r"loader is a Tensor; it must give batches"):
        recalibrate(norm, rows())
    with pytest.raises(TypeError, match=r"loader is a TensorDataset"):
        recalibrate(norm, TensorDataset(rows()))
    with pytest.raises(TypeError, match=r"loader is a NoneType"):
        recalibrate(norm, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        recalibrate(norm, [rows()[0]])
    with pytest.raises(TypeError, match="process_group is of type int"):
        recalibrate(norm, [rows()], 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 is lazy and has seen no input yet"):
        recalibrate(nn.Sequential(nn.LazyBatchNorm1d()), [rows()])
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def on_ranks(rank: int, sizes: list[list[int]], layer_by_layer: bool, wrapped: bool) -> dict[str, Tensor]:
    model: nn.Module = net()
    if len(sizes) < 4:
        convert(model, "world", activation=True)
    else:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(
            model
        )  # which refuses the CPU, and would wait for ranks without a batch
    parts = rows().split([size for rank_sizes in sizes for size in rank_sizes])
    first = sum(len(rank_sizes) for rank_sizes in sizes[:rank])
    if wrapped:
        model = nn.parallel.DistributedDataParallel(model)
    recalibrate(model, list(parts[first : first + len(sizes[rank])]), "world", layer_by_layer=layer_by_layer)
    return {name.removeprefix("module."): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("sizes", [[[2, 5, 3], [6]], [[], [2, 5, 3, 6]], [[2, 5], [3], [6], []]])
def test_ranks_with_uneven_loaders(sizes: list[list[int]], layer_by_layer: bool) -> None:
    outcomes = run_ranks(on_ranks, len(sizes), sizes, layer_by_layer, sizes[0] == [])
    alone = net()
    recalibrate(alone, rows().split([2, 5, 3, 6]), layer_by_layer=layer_by_layer)
    for outcome in outcomes:
        torch.testing.assert_close(outcome.value, outcomes[0].value, rtol=0, atol=0)
        for name, expected in alone.state_dict().items():
            found = outcome.value[name]
            if name.endswith("num_batches_tracked"):
                assert found == max(map(len, sizes))
            else:
                torch.testing.assert_close(found, expected, **CLOSE)


def with_a_failing_rank(rank: int) -> str:
    model = net()
    before = copy.deepcopy(model.state_dict())
    loader: Any = failing(uneven(rows()), 1) if rank == 1 else uneven(rows())
    try:
        recalibrate(model, loader, "world")
    except (OSError, RuntimeError) as error:
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        dist.barrier()
        return str(error)
    return "no error"


def test_a_rank_that_fails_stops_all() -> None:
    found = [outcome.value for outcome in run_ranks(with_a_failing_rank, 3)]
    other = "rank 1 of the group failed: its own error says why"
    assert found == [other, "the disk is gone", other]


def with_another_model(rank: int) -> str:
    try:
        recalibrate(nn.BatchNorm1d(5 + rank), [torch.ones(4, 5 + rank)], "world")
    except ValueError as error:
        return str(error)
    return "no error"


def test_ranks_with_different_models() -> None:
    for outcome in run_ranks(with_another_model, 2):
        assert outcome.value == "the ranks have different models: their batch norms give [14, 16] numbers to exchange"
