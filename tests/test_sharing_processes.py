"""Batch norm over ranks is that of the undivided mini-batch, by every transport, with the same bits on every rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ranks import run_ranks
from wholebatch.functional import batch_norm
from wholebatch.kernels import native_available
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting, merging, opening, set_timeout, sharing_of
from wholebatch.sharing.collective import Collective
from wholebatch.sharing.processes import Processes

TRANSPORTS = ["shared_memory", "gloo"]
SHAPE = (3, 2)  # channels, length
CASES = {2: [5, 2], 4: [3, 0, 1, 4]}  # rows on each rank
LONG = 5000  # channels: more than a message of gloo or a slot of shared memory holds


@pytest.fixture(params=TRANSPORTS, scope="module")
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "shared_memory" and not (native_available() and sys.platform == "linux"):
        pytest.skip("shared memory needs the compiled part, and Linux")
    return name


def data(rows: int) -> list[Tensor]:
    """Inputs far from zero, weight, bias, and two cotangents."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [draw(rows, *SHAPE) * 3 + 100, draw(SHAPE[0]), draw(SHAPE[0]), draw(rows, *SHAPE), draw(rows, *SHAPE)]


def differentiate(x: Tensor, weight: Tensor, bias: Tensor, g: Tensor, v: Tensor, norm: Any) -> list[Tensor]:
    """y, running statistics, first gradients, and second ones."""
    running_mean, running_var = torch.zeros(SHAPE[0]).double(), torch.ones(SHAPE[0]).double()
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    y = norm(leaves[0], running_mean, running_var, leaves[1], leaves[2])
    first = torch.autograd.grad((y * g).sum() + y.pow(3).sum(), leaves, create_graph=True)
    second = torch.autograd.grad((first[0] * v).sum(), leaves[:2])
    return [tensor.detach() for tensor in (y, running_mean, running_var, *first, *second)]


def shared_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm(x, mean, var, weight, bias, training=True, process_group="world", layer="bn")


def whole_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, training=True)


def differentiate_part(rank: int, rows: list[int]) -> tuple[str, list[Tensor], list[Tensor]]:
    x, weight, bias, g, v = data(sum(rows))
    start = sum(rows[:rank])
    part = slice(start, start + rows[rank])
    found = differentiate(x[part], weight, bias, g[part], v[part], shared_norm)
    sharing = sharing_of("world")
    assert isinstance(sharing, Processes)
    # In float32, and long enough for several messages: the same bits on all ranks.
    z = torch.randn(rank + 1, LONG, generator=torch.Generator().manual_seed(rank))
    own = Moments.of(z)
    merged = sharing.merge(own, Meeting("long", "forward"))
    sums = sharing.sum(torch.stack([own.mean, own.m2]), Meeting("long", "backward"))
    strided = sharing.sum(torch.stack([own.mean, own.m2], 1).t(), Meeting("strided", "backward"))
    return type(sharing._on_host).__name__, found, [merged.mean, merged.m2, sums, strided]


@pytest.mark.parametrize("ranks", CASES)
def test_ranks_together_are_the_undivided_batch(ranks: int, transport: str):
    rows = CASES[ranks]
    outcomes = [
        o.value for o in run_ranks(differentiate_part, ranks, rows, environment={"WHOLEBATCH_TRANSPORT": transport})
    ]
    assert {name for name, _, _ in outcomes} == {{"shared_memory": "SharedMemory", "gloo": "Gloo"}[transport]}
    expected = differentiate(*data(sum(rows)), whole_norm)
    parts = list(zip(*(found for _, found, _ in outcomes), strict=True))
    # Inputs of size 100 and spread 3 lose two digits against the roundings of float64, second derivatives two more.
    for position, whole in enumerate(expected):
        tolerance = 1e-12 if position < 6 else 1e-10
        got = parts[position]
        if position in (0, 3, 6):  # of each row: y, and the gradients of the input
            torch.testing.assert_close(torch.cat(got), whole, rtol=tolerance, atol=tolerance)
        elif position in (1, 2):  # running statistics
            for one in got:
                assert torch.equal(one, got[0])
                torch.testing.assert_close(one, whole, rtol=tolerance, atol=tolerance)
        else:  # of each rank's rows, to be added up: gradients of weight and bias
            torch.testing.assert_close(sum(got), whole, rtol=tolerance, atol=tolerance)
    for _, _, vectors in outcomes:
        for one, first in zip(vectors, outcomes[0][2], strict=True):
            assert torch.equal(one, first)
        assert torch.equal(vectors[2], vectors[3])
    z = torch.cat([torch.randn(r + 1, LONG, generator=torch.Generator().manual_seed(r)) for r in range(ranks)]).double()
    whole = Moments.of(z)
    # Each part's float32 moments err by a rounding of their size; they are merged in float64, and rounded once.
    torch.testing.assert_close(outcomes[0][2][0].double(), whole.mean, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(outcomes[0][2][1].double(), whole.m2, rtol=2e-6, atol=1e-5)


def merge_by_all(rank: int) -> dict[str, list[Tensor]]:
    """One meeting by each transport: also the one for GPUs, which serves a group on the CPU as well, and without the
    compiled part."""
    own = Moments.of(torch.randn(rank + 2, 300, generator=torch.Generator().manual_seed(rank)))
    found = {}
    for name in ["shared_memory", "gloo", "collective", "uncompiled"]:
        group = dist.new_group([0, 1])
        os.environ["WHOLEBATCH_TRANSPORT"] = "gloo" if name == "gloo" else ""
        sharing = sharing_of(group)
        assert isinstance(sharing, Processes)
        if name == "collective":
            sharing._on_host = Collective(group)
        if name == "uncompiled":
            opening.native_available = merging.native_available = lambda: False  # type: ignore[attr-defined]
        merged = sharing.merge(own, Meeting("bn", "forward"))
        sums = sharing.sum(merged.mean[None] * (rank + 0.3), Meeting("bn", "backward"))
        found[f"{name} by {type(sharing._on_host).__name__}"] = [
            torch.tensor(merged.count),
            merged.mean,
            merged.m2,
            sums,
        ]
    return found


def test_every_transport_gives_the_same_bits():
    outcomes = [outcome.value for outcome in run_ranks(merge_by_all, 2)]
    if native_available() and sys.platform == "linux":
        names = ["shared_memory by SharedMemory", "gloo by Gloo", "collective by Collective", "uncompiled by Gloo"]
        assert list(outcomes[0]) == names
    first = next(iter(outcomes[0].values()))
    for found in outcomes:
        for by_transport in found.values():
            for one, other in zip(by_transport, first, strict=True):
                assert torch.equal(one, other)


def choose_wrongly(rank: int) -> None:
    with pytest.raises(ValueError, match="WHOLEBATCH_TRANSPORT must be shared_memory or gloo; it is 'pigeons'"):
        differentiate_part(rank, [2, 2])


def test_an_unknown_transport_is_refused():
    for outcome in run_ranks(choose_wrongly, 2, environment={"WHOLEBATCH_TRANSPORT": "pigeons"}):
        assert outcome.value is None


def live_through_groups(rank: int) -> list[Any]:
    pairs = [dist.new_group([0, 1]), dist.new_group([2])]
    own = Moments(2.0, torch.full((4,), float(rank)), torch.zeros(4))
    found: list[Any] = []
    if rank < 2:
        sharing = sharing_of(pairs[0])
        assert sharing is sharing_of(pairs[0])
        assert sharing is not None
        found.append(sharing.merge(own, Meeting("bn", "forward")).mean[0].item())
    else:
        assert sharing_of(pairs[1]) is None  # a group of one
        with pytest.raises(ValueError, match="rank 2 is not a member"):
            sharing_of(pairs[0])
    everyone = sharing_of("world")
    assert everyone is not None
    found.append(everyone.merge(own, Meeting("bn", "forward")).mean[0].item())
    if sys.platform == "linux" and native_available():
        # The memory is mapped, and has no name and no descriptor by which it could outlive its ranks.
        found.append("/memfd:wholebatch (deleted)" in Path("/proc/self/maps").read_text())
        opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        found.append(sum("wholebatch" in name for name in [*opened, *os.listdir("/dev/shm")]))
    with pytest.raises(TypeError, match=r"float32 or float64, not torch.float16 \(layer 'bn', forward\)"):
        everyone.merge(Moments(1, torch.zeros(2).half(), torch.zeros(2).half()), Meeting("bn", "forward"))
    return found


def test_groups_have_sharings_of_their_own_and_leave_nothing_behind():
    outcomes = [outcome.value for outcome in run_ranks(live_through_groups, 3)]
    rest = [True, 0] if sys.platform == "linux" and native_available() else []
    assert outcomes == [[0.5, 1.0, *rest], [0.5, 1.0, *rest], [1.0, *rest]]


def test_without_torch_distributed_the_world_is_refused():
    assert sharing_of(None) is None
    with pytest.raises(ValueError, match=r"init_process_group\(\).*process_group=None"):
        sharing_of("world")
    with pytest.raises(ValueError, match="process_group is 'everyone'; the only name is 'world'"):
        sharing_of("everyone")
    with pytest.raises(TypeError, match="process_group is of type list; it must be a group"):
        sharing_of([0, 1])  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_positive_seconds(seconds: float):
    with pytest.raises(ValueError, match="positive seconds"):
        set_timeout(seconds)
