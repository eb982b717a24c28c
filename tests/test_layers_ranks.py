"""A net trained on several ranks, uneven parts of each mini-batch on them, ends where the undivided batch takes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import wholebatch
from nets import ResNet18
from ranks import run_ranks

STEPS, BATCH = 4, 13
State = dict[str, Tensor]
# How many of the 13 examples each rank has: uneven, and none on one of four.
PARTS = {2: (9, 4), 4: (6, 1, 0, 6)}


def resnet18() -> nn.Module:
    return ResNet18()


def transformers_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], num_labels=3)
            self.net = ResNetForImageClassification(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).logits

    return Logits()


def make(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double().train()


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(BATCH, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 + 3
    return x, torch.randint(0, 3, (BATCH,), generator=generator)


def train(model: nn.Module, rows: slice, scale: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for step in range(STEPS):
        x, y = data(step)
        # DistributedDataParallel averages gradients over the ranks: times their number, it is the sum over the batch.
        loss = F.cross_entropy(model(x[rows]), y[rows], reduction="sum") * scale / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rows_of(rank: int) -> slice:
    sizes = PARTS[dist.get_world_size()]
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def train_part(rank: int, build: Callable[[], nn.Module]) -> State:
    model = wholebatch.convert(make(build), process_group="world")
    train(DistributedDataParallel(model), rows_of(rank), dist.get_world_size())
    return model.state_dict()


def train_part_sharded(rank: int, build: Callable[[], nn.Module]) -> State:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = wholebatch.convert(make(build), process_group="world")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.stages:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, rows_of(rank), dist.get_world_size())
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def undivided(build: Callable[[], nn.Module]) -> State:
    model = make(build)
    train(model, slice(None), 1.0)
    return model.state_dict()


def agree(found: State, expected: State) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("build", [resnet18, transformers_resnet])
def test_training_on_ranks_is_training_on_the_undivided_batch(build: Callable[[], nn.Module], ranks: int) -> None:
    if build is transformers_resnet:
        pytest.importorskip("transformers")
    expected = undivided(build)
    for outcome in run_ranks(train_part, ranks, build):
        agree(outcome.value, expected)


def test_sharded_parameters_are_trained_as_well() -> None:
    expected = undivided(resnet18)
    found = run_ranks(train_part_sharded, 2, resnet18)[0].value  # a full state is gathered on the first rank
    agree(found, expected)


def train_mixed(rank: int) -> tuple[State, int]:
    """Under autocast and compiled: the meetings are the same ones."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), wholebatch.BatchNorm2d(4, process_group="world", activation="relu"), nn.Flatten(1)
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = data(0)[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(x[rows_of(rank)])
    y.float().sum().backward()
    return model.state_dict(), len(y)


def test_compiled_and_under_autocast_the_statistics_are_the_whole_batchs() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    with torch.autocast("cpu", torch.bfloat16):
        norm(conv(data(0)[0].float()))
    outcomes = [outcome.value for outcome in run_ranks(train_mixed, 2)]
    assert [rows for _, rows in outcomes] == list(PARTS[2])
    for state, _ in outcomes:
        torch.testing.assert_close(state["1.running_mean"], norm.running_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(state["1.running_var"], norm.running_var, rtol=1e-4, atol=1e-4)
    assert torch.equal(outcomes[0][0]["1.running_var"], outcomes[1][0]["1.running_var"])
