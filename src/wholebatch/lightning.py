"""Whole-batch batch norm in Lightning: ``Trainer(strategy="ddp", plugins=[WholeBatchSync()])``.

Lightning asks a layer-sync plugin to change the model's layers once its processes are up, and to change them back
after. Its own serves CUDA only and reverts to layers of no dimension; this one serves the CPU too, and each layer gets
back the class that it had.

Needs ``lightning`` or ``pytorch_lightning``, which have each a base class of their own: the plugin is of the one that
the program has imported before this, else of the one that is installed. Of both, where both are imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from wholebatch.conversion import convert, revert
from wholebatch.layers import Save
from wholebatch.sharing import ProcessGroupLike

__all__ = ["WholeBatchSync"]

_PLUGINS = {
    "lightning": "lightning.pytorch.plugins.layer_sync",
    "pytorch_lightning": "pytorch_lightning.plugins.layer_sync",
}


def _bases() -> tuple[Any, ...]:
    names = [name for name in _PLUGINS if name in sys.modules] or [name for name in _PLUGINS if find_spec(name)][:1]
    if not names:
        raise ImportError("wholebatch.lightning needs Lightning: pip install 'wholebatch[lightning]'")
    return tuple(import_module(_PLUGINS[name]).LayerSync for name in names)


class WholeBatchSync(*_bases()):  # type: ignore[misc]
    """Batch norms of the model share the mini-batch of all processes while Lightning trains.

    Args:
        process_group: who shares the mini-batch: ``"world"`` (all of Lightning's processes), or a group.
        activation, save: see :func:`wholebatch.convert`.
    """

    def __init__(
        self, process_group: ProcessGroupLike = "world", *, activation: bool = False, save: Save = None
    ) -> None:
        self.process_group, self.activation, self.save = process_group, activation, save

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert the model's batch norms, in place."""
        return convert(model, self.process_group, activation=self.activation, save=self.save)

    def revert(self, model: nn.Module) -> nn.Module:
        """Change them back, in place."""
        return revert(model)
