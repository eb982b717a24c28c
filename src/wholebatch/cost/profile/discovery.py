"""Finding the models and the optimizers that a function uses, where only the function is known: by watching it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from wholebatch.cost.profile.norms import is_norm


@dataclass
class Discovery:
    """What was seen.

    Attributes:
        called: modules, in the order of their first calls.
        optimizers: that made a step.
        compiled: a call was seen from inside a compiler.
    """

    called: dict[nn.Module, None] = field(default_factory=dict)
    optimizers: dict[Optimizer, None] = field(default_factory=dict)
    compiled: bool = False

    @property
    def models(self) -> list[nn.Module]:
        """Modules that were called and are part of no other that was; what wraps one for data parallelism is opened."""
        inner = {child for module in self.called for child in module.modules() if child is not module}
        opened = [_unwrap(module) for module in self.called if module not in inner]
        return list(dict.fromkeys(opened))

    @property
    def normalising(self) -> list[nn.Module]:
        """Those of :attr:`models` that hold a normalisation layer."""
        return [model for model in self.models if any(is_norm(module) for module in model.modules())]

    @property
    def compiled_norms(self) -> bool:
        """Whether a normalisation layer runs inside what torch.compile compiled."""
        compiled = (module for model in self.called for module in model.modules() if _is_compiled(module))
        return self.compiled or any(is_norm(part) for module in compiled for part in module.modules())


@contextmanager
def discovering() -> Iterator[Discovery]:
    """Watch what is called in this context."""
    found = Discovery()

    def call(module: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling():
            found.compiled = True
            return
        found.called[module] = None

    def step(optimizer: Optimizer, *_: Any) -> None:
        found.optimizers[optimizer] = None

    handles = register_module_forward_pre_hook(call), register_optimizer_step_post_hook(step)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _unwrap(module: nn.Module) -> nn.Module:
    wrapper = type(module).__module__.startswith(("torch.nn.parallel", "torch.distributed"))
    inner = getattr(module, "module", None)
    return _unwrap(inner) if wrapper and isinstance(inner, nn.Module) else module


def _is_compiled(module: nn.Module) -> bool:
    made = type(module).__name__ == "OptimizedModule" and type(module).__module__.startswith("torch._dynamo")
    return made or getattr(module, "_compiled_call_impl", None) is not None
