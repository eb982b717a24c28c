"""torch.compile: forward, loss and with them backward; the optimizer compiled too where that is faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.problem import Problem
from benchmarks.systems import LeftOut, Trainer
from benchmarks.systems.choice import fastest
from benchmarks.systems.eager import Batch, Loop, make_batches, make_net, make_optimizer, set_up


def load() -> str:
    """torch's version."""
    from torch._inductor import cpp_builder, exc

    try:
        compiler = cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise LeftOut("torch.compile needs a C++ compiler (Debian: apt install g++)") from None
    return f"{torch.__version__} ({compiler})"


def make(problem: Problem) -> Trainer:
    """The fastest of: forward and backward compiled, the optimizer fused in C++ or compiled too; one graph of all."""
    set_up(problem)
    torch._dynamo.reset()  # so that the nets measured before do not count towards its limit of recompilations
    batches = make_batches(problem)
    candidates = {
        "fused optimizer": by_parts(problem, batches, False),
        "compiled optimizer": by_parts(problem, batches, True),
    }
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        candidates["one graph"] = whole(problem, batches)
    return fastest(candidates)


def by_parts(problem: Problem, batches: list[Batch], compile_update: bool) -> Loop:
    """Forward and loss under torch.compile, and backward with them; the optimizer by itself."""
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

    return Loop(net, batches, step)


def whole(problem: Problem, batches: list[Batch]) -> Loop:
    """Forward, backward and update in a single graph, which only the newest versions can trace, and on request."""
    torch._dynamo.config.trace_autograd_ops = True
    net, rate = make_net(problem), problem.learning_rate
    parameters = list(net.parameters())
    first, second = ([torch.zeros_like(w) for w in parameters] for _ in range(2))
    count = torch.zeros(())

    @torch.compile(dynamic=False, fullgraph=True)
    def step(x: Tensor, y: Tensor) -> None:
        gradients = torch.autograd.grad(functional.cross_entropy(net(x), y), parameters)
        with torch.no_grad():
            if problem.optimizer == "sgd":
                for w, g in zip(parameters, gradients, strict=True):
                    w.sub_(rate * g)
                return
            count.add_(1)
            size, root = rate / (1 - 0.9**count), (1 - 0.999**count).sqrt()
            for w, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                w.sub_(size * m / (v.sqrt() / root + 1e-8))

    return Loop(net, batches, step)
