"""torch over ranks: DistributedDataParallel over gloo, with a batch norm over all ranks written by hand."""

from __future__ import annotations

import inspect
from functools import partial
from itertools import cycle, islice, pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.problem import SpreadProblem as Problem
from benchmarks.systems import LeftOut, Trainer, compiled
from benchmarks.systems.choice import fastest
from benchmarks.systems.eager import Batch, make_optimizer
from benchmarks.systems.group import Together, of_each
from benchmarks.systems.group import join as load
from benchmarks.systems.joint_norm import Compiled, JointNorm, Kernels, Pieces

__all__ = ["Problem", "load", "make"]

# What DDP can be told, beside gradients that are views of its buckets. All gradients are then in one bucket (the usual
# 25 MB), which is added up when the first layer's are there; or in several, of which the last layers' go ahead.
WAYS: dict[str, dict[str, Any]] = {
    "one bucket": {},
    "one bucket, static graph": {"static_graph": True},
    "buckets of 1 MB": {"bucket_cap_mb": 1},
    "buckets of 1 MB, static graph": {"bucket_cap_mb": 1, "static_graph": True},
}
MEASURED = 20  # steps of which the times in collectives are taken


def make(problem: Problem) -> Trainer:
    """The fastest of torch's kernels and compiled ones, and with these of the ways of DDP."""
    torch._dynamo.reset()  # so that the nets measured before do not count towards its limit of recompilations
    group = dist.new_group()  # so that a layer's few numbers do not queue behind a bucket
    batches = make_batches(problem)
    first = next(iter(WAYS))
    best = fastest({kind: Loop(problem, batches, pieces, group, first) for kind, pieces in _kinds().items()})
    assert isinstance(best, Loop)
    kind = best.note
    chosen = fastest({way: best if way == first else best.told(way) for way in WAYS})
    chosen.note = f"{kind}; {chosen.note}"
    return chosen


def _kinds() -> dict[str, Pieces]:
    try:
        compiled.load()
    except LeftOut:
        return {"torch's kernels": Kernels()}
    return {"torch's kernels": Kernels(), "compiled": Compiled()}


def make_net(problem: Problem, pieces: Pieces, group: Any) -> nn.Sequential:
    """Linear, batch norm over all ranks and ReLU in one, for each hidden layer; a linear output layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(problem.sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=False), JointNorm(fan_out, pieces, group)]
    return nn.Sequential(*layers, nn.Linear(problem.sizes[-2], problem.sizes[-1]))


def make_batches(problem: Problem) -> list[Batch]:
    """Of the table cut into contiguous mini-batches this rank's share of each, which are as many rows on every rank."""
    if problem.batch % dist.get_world_size():
        raise LeftOut(f"{problem.batch} rows cannot be dealt to {dist.get_world_size()} ranks in equal numbers")
    x, y = (torch.from_numpy(values) for values in problem.table())
    share = problem.batch // dist.get_world_size()
    starts = range(dist.get_rank() * share, len(x), problem.batch)
    return [(x[i : i + share].clone(), y[i : i + share].clone()) for i in starts]


class Loop(Together):
    """A net under DDP, and its training loop."""

    def __init__(self, problem: Problem, batches: list[Batch], pieces: Pieces, group: Any, way: str) -> None:
        super().__init__(lambda steps: partial(self._take, list(islice(self.batches, steps))))
        self.problem, self.pieces, self.group, self.way = problem, pieces, group, way
        self._rows, self.batches = batches, cycle(batches)
        self.net = make_net(problem, pieces, group)
        how = {"gradient_as_bucket_view": True, _SYNC_BUFFERS: False, **WAYS[way]}
        self.ddp: Any = DistributedDataParallel(self.net, **how)
        self.optimizer = make_optimizer(problem, self.net, fused=True)

    def told(self, way: str) -> Loop:
        """The same net, told DDP otherwise."""
        return Loop(self.problem, self._rows, self.pieces, self.group, way)

    def measure(self) -> dict[str, float]:
        """The share of a step that ranks spend in collectives, waiting for others included: the mean over ranks, and
        the median over steps."""
        norms = [module for module in self.net if isinstance(module, JointNorm)]
        self.ddp._set_ddp_runtime_logging_sample_rate(1)
        shares = []
        for _ in range(MEASURED):
            for norm in norms:
                norm.seconds = 0.0
            seconds = self.run(1)
            told = self.ddp._get_ddp_logging_data()
            shown = (told["backward_comm_time"] - told["backward_compute_comm_overlap_time"]) / 1e9
            shares.append((shown + sum(norm.seconds for norm in norms)) / seconds)
        self.ddp._set_ddp_runtime_logging_sample_rate(100)  # the usual one
        return {"idle": float(np.median(np.mean(of_each(shares), axis=0)))}

    def _take(self, batches: list[Batch]) -> None:
        for x, y in batches:
            self.optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(self.ddp(x), y).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


# The name before torch 2.13. All ranks' running statistics are equal: they need no broadcast.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
