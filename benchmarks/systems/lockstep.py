"""One optimizer step's forward, loss and backward: undivided, checkpointed, accumulated, or in lockstep."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wholebatch
from benchmarks.fit_worker import peak, reset_peak
from benchmarks.lockstep_cases import CHECKPOINT, PLAIN, TORCH, UNDIVIDED
from benchmarks.lockstep_cases import Case as Problem
from benchmarks.storages import Live
from benchmarks.systems import LeftOut
from wholebatch.kernels import instruction_set


def load() -> str:
    """Both versions."""
    return f"{version('wholebatch')} ({instruction_set()}) with torch {torch.__version__}"


class Net(nn.Module):
    """The blocks one after the other; ``block`` calls one of them."""

    def __init__(self, blocks: nn.ModuleList, block: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks, self.block = blocks, block

    def forward(self, x: Tensor) -> Tensor:
        *blocks, head = self.blocks
        for each in blocks:
            x = self.block(each, x)
        return cast(Tensor, head(x))


class Step:
    """The step without the update, which is the same for every way; gradients are new each time."""

    note = ""

    def __init__(self, case: Problem) -> None:
        self.net = Net(case.make_net(), _block(case))
        self.x, self.y = case.make_data()
        self.case = case
        self.step: Callable[[], Tensor] = {
            UNDIVIDED: self.undivided,
            CHECKPOINT: self.undivided,
            PLAIN: self.plain,
        }.get(case.way, self.in_lockstep)

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.net.zero_grad()
            self.step()
        return time.perf_counter() - start

    def measure(self) -> dict[str, Any]:
        """``live_bytes``: the peak of live storages, see :class:`Live`; ``resident_bytes``: how far a step makes the
        process grow, above what parameters and inputs take, null where the system does not tell.
        """
        self.net.zero_grad()
        gc.collect()
        _give_back()
        before = reset_peak()
        self.step()
        grown = None if before is None else peak() - before
        self.net.zero_grad()
        with Live([self.x, self.y, *self.net.parameters(), *self.net.buffers()]) as live:
            self.step()
        return {"live_bytes": live.peak, "resident_bytes": grown}

    def undivided(self) -> Tensor:
        """The whole mini-batch at once; with or without checkpoints."""
        loss = F.cross_entropy(self.net(self.x), self.y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def plain(self) -> Tensor:
        """Each part by itself, its batch norms by its own statistics; the losses weighed by examples."""
        total = torch.zeros(())
        for x, y in zip(self.x.tensor_split(self.case.parts), self.y.tensor_split(self.case.parts), strict=True):
            loss = F.cross_entropy(self.net(x), y) * (len(x) / len(self.x))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def in_lockstep(self) -> Tensor:
        """The parts as one mini-batch."""
        mode: Any = self.case.way
        return wholebatch.accumulate(self.net, nn.CrossEntropyLoss(), self.x, self.y, self.case.parts, offload=mode)


def make(case: Problem) -> Step:
    """The step; a mode that this build of wholebatch does not have is left out."""
    torch.set_num_threads(case.threads)
    step = Step(case)
    try:
        step.step()
    except NotImplementedError as error:
        raise LeftOut(f"wholebatch has no mode {case.way!r} here") from error
    return step


def _block(case: Problem) -> Callable[[nn.Module, Tensor], Tensor]:
    """How a block is called. Ours replays statistics in the recomputation; PyTorch's moves the running ones twice."""
    if case.way != CHECKPOINT:
        return lambda block, x: block(x)
    more: dict[str, Any] = {} if case.system.endswith(TORCH) else {"context_fn": wholebatch.replay}
    return lambda block, x: checkpoint(block, x, use_reentrant=False, **more)


def _give_back() -> None:
    """Let the allocator give what it keeps back to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
