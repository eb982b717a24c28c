"""Batch normalization over the whole mini-batch, however it is split."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wholebatch import functional
    from wholebatch.conversion import (
        convert,
        fold,
        recalibrate,
        revert,
    )
    from wholebatch.feedforward import (
        Architecture,
        FeedForward,
        Loss,
        Optimizer,
        Spread,
        Training,
    )
    from wholebatch.layers import (
        BatchNorm,
        BatchNorm1d,
        BatchNorm2d,
        BatchNorm3d,
        LazyBatchNorm1d,
        LazyBatchNorm2d,
        LazyBatchNorm3d,
    )
    from wholebatch.microbatches import (
        LockstepError,
        accumulate,
        lockstep,
    )
    from wholebatch.recomputing import (
        saving_inputs,
    )
    from wholebatch.sharing import (
        JoinBatchNorms,
        MeetingError,
        set_timeout,
    )
    from wholebatch.sharing.replay import (
        replay,
        replayed,
    )

__version__ = version("wholebatch")
__all__ = [
    "Architecture",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "FeedForward",
    "JoinBatchNorms",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LockstepError",
    "Loss",
    "MeetingError",
    "Optimizer",
    "Spread",
    "Training",
    "__version__",
    "accumulate",
    "convert",
    "fold",
    "functional",
    "lockstep",
    "recalibrate",
    "replay",
    "replayed",
    "revert",
    "saving_inputs",
    "set_timeout",
]

# Where each name lives; a module is imported, and torch with it, only when a name of it is asked for.
_ROOMS = {
    "wholebatch.conversion": (
        "convert",
        "fold",
        "recalibrate",
        "revert",
    ),
    "wholebatch.feedforward": (
        "Architecture",
        "FeedForward",
        "Loss",
        "Optimizer",
        "Spread",
        "Training",
    ),
    "wholebatch.layers": (
        "BatchNorm",
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "LazyBatchNorm1d",
        "LazyBatchNorm2d",
        "LazyBatchNorm3d",
    ),
    "wholebatch.microbatches": (
        "LockstepError",
        "accumulate",
        "lockstep",
    ),
    "wholebatch.recomputing": ("saving_inputs",),
    "wholebatch.sharing": (
        "JoinBatchNorms",
        "MeetingError",
        "set_timeout",
    ),
    "wholebatch.sharing.replay": (
        "replay",
        "replayed",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a name's module when it is asked for: `wholebatch --help` answers at once."""
    if name in ("cost", "functional"):
        return import_module(f"wholebatch.{name}")
    for module, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
