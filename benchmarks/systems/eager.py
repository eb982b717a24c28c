"""torch, eager: the usual training loop, on mini-batches that lie ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle, islice, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.problem import Problem
from benchmarks.systems import Trainer
from benchmarks.systems.choice import fastest

Batch = tuple[Tensor, Tensor]


def load() -> str:
    """torch's version."""
    return torch.__version__


def set_up(problem: Problem) -> None:
    """What torch keeps for the whole process; a system of another precision is a process of its own."""
    torch.set_num_threads(problem.threads)
    torch.set_float32_matmul_precision(problem.precision)


def make_net(problem: Problem) -> nn.Sequential:
    """Linear (without a bias before batch norm, which takes it away again), norm, ReLU; a linear output layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(problem.sizes[:-1]):
        layers.append(nn.Linear(fan_in, fan_out, bias=problem.norm != "batch"))
        if problem.norm == "batch":
            layers.append(nn.BatchNorm1d(fan_out))
        elif problem.norm == "layer":
            layers.append(nn.LayerNorm(fan_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(problem.sizes[-2], problem.sizes[-1]))


def make_batches(problem: Problem) -> list[Batch]:
    """The table cut into contiguous mini-batches."""
    x, y = (torch.from_numpy(values) for values in problem.table())
    starts = range(0, len(x), problem.batch)
    return [(x[i : i + problem.batch].clone(), y[i : i + problem.batch].clone()) for i in starts]


def make_optimizer(problem: Problem, net: nn.Module, **how: bool) -> torch.optim.Optimizer:
    """SGD or Adam; ``how`` says fused or foreach."""
    kind = torch.optim.SGD if problem.optimizer == "sgd" else torch.optim.Adam
    return kind(net.parameters(), lr=problem.learning_rate, **how)  # type: ignore[arg-type]


class Loop:
    """``step(x, y)`` over the mini-batches in turn."""

    def __init__(self, net: nn.Module, batches: list[Batch], step: Callable[[Tensor, Tensor], None]) -> None:
        self.note, self.net, self.step, self.batches = "", net, step, cycle(batches)

    def run(self, steps: int) -> float:
        batches, step = list(islice(self.batches, steps)), self.step
        start = time.perf_counter()
        for x, y in batches:
            step(x, y)
        return time.perf_counter() - start


def make(problem: Problem) -> Trainer:
    """The faster of the fused and the foreach optimizer."""
    set_up(problem)
    batches = make_batches(problem)
    return fastest({how: _loop(problem, batches, how) for how in ("fused", "foreach")})


def _loop(problem: Problem, batches: list[Batch], how: str) -> Loop:
    net = make_net(problem)
    optimizer = make_optimizer(problem, net, **{how: True})

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Loop(net, batches, step)
