"""The systems of ``python -m benchmarks gpu --steps``: training steps on a device, ours and torch's, in this process.

Ours gathers shuffled rows of a table on the device; the peers get mini-batches that lie ready there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import environ
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.problem import Problem
from benchmarks.systems import Trainer
from benchmarks.systems.eager import Batch, Loop, make_batches, make_net, make_optimizer
from benchmarks.systems.ours import LOSS
from benchmarks.systems.ours import make_net as make_ours
from wholebatch.feedforward import data
from wholebatch.feedforward.device.engine import DeviceEngine

WARM = 8  # steps before any is timed: kernels are compiled, and a captured step is captured


class Ours:
    """The device engine, a stretch of an epoch at a time."""

    def __init__(self, problem: Problem, device: str, *, graphs: bool = True, fused: bool = True) -> None:
        model, optimizer = make_ours(problem)
        self.engine = DeviceEngine(model, LOSS, optimizer, device=device, graphs=graphs)
        self.data = data.prepare(*problem.table(), None, model.architecture, LOSS, torch.float32)
        self.problem, self._fused = problem, fused
        self.run(WARM)
        plan = self.engine._pass.plan if self.engine._pass is not None else None
        self.note = "" if plan is None else "fused blocks" if plan.fused else f"layer by layer: {plan.why}"

    def run(self, steps: int) -> float:
        """The time has the copying of the parameters in and out, once."""
        batch = self.problem.batch
        order = np.resize(data.shuffled(len(self.data), 0, 0), steps * batch)
        offsets, rates = np.arange(steps + 1) * batch, np.full(steps, self.problem.learning_rate)
        start = time.perf_counter()
        with _blocks(fused=self._fused):
            self.engine.train_epoch(self.data, order, offsets, rates)
        return time.perf_counter() - start


class Theirs(Loop):
    """A loop of torch's whose work is finished when its time is taken."""

    def __init__(self, net: Any, batches: list[Batch], step: Callable[[Tensor, Tensor], None], device: str) -> None:
        super().__init__(net, batches, step)
        self._on_gpu = torch.device(device).type == "cuda"
        self.run(WARM)

    def run(self, steps: int) -> float:
        start = time.perf_counter()
        super().run(steps)
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def eager(problem: Problem, device: str) -> Trainer:
    """torch as it is, with its fused optimizer, and no CUDA graph."""
    return _loop(problem, device, None)


def compiled(problem: Problem, device: str) -> Trainer:
    """Forward and loss compiled, and backward with them."""
    return _loop(problem, device, {"dynamic": False})


def replayed(problem: Problem, device: str) -> Trainer:
    """The same in torch's CUDA graphs."""
    return _loop(problem, device, {"dynamic": False, "mode": "reduce-overhead"})


def _loop(problem: Problem, device: str, how: dict[str, Any] | None) -> Trainer:
    net = make_net(problem).to(device)
    optimizer = make_optimizer(problem, net, fused=True)
    batches = [(x.to(device), y.to(device)) for x, y in make_batches(problem)]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(net(x), y)

    if how is not None:
        torch._dynamo.reset()
        loss = torch.compile(loss, **how)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Theirs(net, batches, step, device)


@contextmanager
def _blocks(*, fused: bool) -> Iterator[None]:
    """With the switch of the fused blocks as this system has it; a new pass is planned where the table is new."""
    name = "WHOLEBATCH_FUSED_BLOCKS"
    before = environ.get(name)
    environ[name] = "1" if fused else "0"
    try:
        yield
    finally:
        environ.pop(name)
        if before is not None:
            environ[name] = before


Make = Callable[[Problem, str], Trainer]
OURS: dict[str, Make] = {
    "wholebatch": Ours,
    "wholebatch, layer by layer": lambda problem, device: Ours(problem, device, fused=False),
    "wholebatch, no graphs": lambda problem, device: Ours(problem, device, graphs=False),
}
PEERS: dict[str, Make] = {"torch": eager, "compile": compiled, "compile, graphs": replayed}
