"""Batch normalization over the whole mini-batch, however it is split."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wholebatch.feedforward import Architecture, FeedForward, Loss, Optimizer, Training

__version__ = version("wholebatch")
__all__ = ["Architecture", "FeedForward", "Loss", "Optimizer", "Training", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the net, and with it torch, only when it is asked for: `wholebatch --help` answers at once."""
    if name in __all__:
        return getattr(import_module("wholebatch.feedforward"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
