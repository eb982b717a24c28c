"""One rank: a layer by itself, a layer shared with the other ranks, or the collective that a layer would have taken."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

import wholebatch
from benchmarks.problem import SharingProblem as Problem
from benchmarks.systems import Trainer
from benchmarks.systems.group import join as load
from benchmarks.systems.group import repeated

__all__ = ["Problem", "load", "make"]


def make(problem: Problem) -> Trainer:
    """What the problem's kind says."""
    return repeated(gather(problem) if problem.kind == "all_gather" else pass_layer(problem))


def pass_layer(problem: Problem) -> Callable[[], None]:
    """Batch norm and ReLU, forward and backward, its mini-batch this rank's or all ranks'."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    shape = (problem.rows, problem.channels)
    z, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    group = "world" if problem.kind == "shared" else None
    layer = wholebatch.BatchNorm1d(problem.channels, activation="relu", process_group=group)
    wanted = [z.requires_grad_(), *layer.parameters()]

    def step() -> None:
        torch.autograd.grad(layer(z), wanted, dy)

    return step


def gather(problem: Problem) -> Callable[[], None]:
    """One all_gather over gloo of a forward pass's payload: count, and a mean and M2 for each channel."""
    mine = torch.randn(2 * problem.channels + 1)
    all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]

    def step() -> None:
        dist.all_gather(all_ranks, mine)

    return step
