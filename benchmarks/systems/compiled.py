"""torch.compile: forward, loss and with them backward; the optimizer compiled too where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.problem import Problem
from benchmarks.systems import LeftOut, Trainer
from benchmarks.systems.choice import fastest
from benchmarks.systems.eager import Batch, Loop, make_batches, make_net, make_optimizer


def load() -> str:
    """torch's version."""
    from torch._inductor import cpp_builder, exc

    try:
        compiler = cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise LeftOut("torch.compile needs a C++ compiler (Debian: apt install g++)") from None
    return f"{torch.__version__} ({compiler})"


def make(problem: Problem) -> Trainer:
    """The fastest of: the optimizer fused in C++, or compiled by itself."""
    torch.set_num_threads(problem.threads)
    torch._dynamo.reset()  # so that the nets measured before do not count towards its limit of recompilations
    batches = make_batches(problem)
    return fastest(
        {"fused optimizer": _loop(problem, batches, False), "compiled optimizer": _loop(problem, batches, True)}
    )


def _loop(problem: Problem, batches: list[Batch], compile_update: bool) -> Loop:
    net = make_net(problem)
    optimizer = make_optimizer(problem, net, **({"foreach": True} if compile_update else {"fused": True}))
    update: Any = torch.compile(optimizer.step) if compile_update else optimizer.step

    @torch.compile(dynamic=False)
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(net(x), y)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x, y).backward()  # type: ignore[no-untyped-call]
        update()

    return Loop(batches, step)
