"""Uneven ends: a rank that ran out of data takes part with zero examples until the others are done.

::

    with Join([JoinBatchNorms(model), model]):      # model: a DistributedDataParallel, or alone in the list
        for batch in loader:                        # may be longer on some ranks
            ...

A rank that has left the loop answers the others' meetings, whichever they are, with count 0. It does so in a thread:
DistributedDataParallel's own shadow collectives block the main one, each until the others come to it, and on their way
there the others meet at our layers.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

from wholebatch.sharing.groups import find_group, sharing_of
from wholebatch.sharing.processes import Processes


class JoinBatchNorms(Joinable):
    """The batch norms of a model, for ``torch.distributed.algorithms.Join``. List it first.

    At the end the running statistics of all ranks are those of the rank that trained longest (of several, the highest).

    Args:
        model: the model as it is called: the DistributedDataParallel, where there is one.
        process_group: that of its batch norms, and of the other joinables; ``"world"`` is the default group.

    Raises:
        ValueError: torch.distributed is not initialised, or it is not the first in Join's list (told by the first
            call of the model inside it).
    """

    def __init__(self, model: nn.Module, process_group: ProcessGroup | str = "world") -> None:
        super().__init__()
        self._model = model
        self._group = find_group(process_group)
        sharing = sharing_of(self._group)
        assert sharing is None or isinstance(sharing, Processes)
        self._sharing = sharing
        self._work: dist.Work | None = None
        model.register_forward_pre_hook(self._notify)

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """Of no use outside Join."""
        return _Hook(self._model, self._group, self._sharing)

    @property
    def join_device(self) -> torch.device:
        """Where Join's own collectives run: the model's device."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def join_process_group(self) -> Any:
        """The group of Join's own collectives."""
        return self._group

    def _notify(self, model: nn.Module, inputs: Any) -> None:
        """Tell those that have joined that there is one more iteration."""
        config = self._join_config  # type: ignore[attr-defined]
        if not config.enable:
            return
        if not config.is_first_joinable:
            raise ValueError("JoinBatchNorms must come first in Join's list: Join([JoinBatchNorms(model), model, ...])")
        # Not waited for: a rank that will not come is diagnosed by the meetings of the model's batch norms.
        self._work = Join.notify_join_context(self)


class _Hook(JoinHook):
    def __init__(self, model: nn.Module, group: ProcessGroup, sharing: Processes | None) -> None:
        self._model, self._group, self._sharing = model, group, sharing
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def main_hook(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._thread is None and self._sharing is not None:
            self._thread = threading.Thread(target=self._stand_by, name="wholebatch join", daemon=True)
            self._thread.start()

    def post_hook(self, is_last_joiner: bool) -> None:
        if self._sharing is None:
            return
        # A last meeting, in which all ranks stand by: it ends the threads of those that joined earlier.
        if self._thread is None:
            self._stand_by()
        else:
            self._thread.join()
        if self._failed is not None:
            raise self._failed
        self._copy_statistics(is_last_joiner)

    def _stand_by(self) -> None:
        assert self._sharing is not None
        try:
            while self._sharing.stand_by():
                pass
        except BaseException as error:
            self._failed = error

    def _copy_statistics(self, is_last_joiner: bool) -> None:
        """From the last joiner to all."""
        statistics = _find_statistics(self._model)
        if not statistics:
            return
        last = torch.tensor([dist.get_rank(self._group) if is_last_joiner else -1], device=statistics[0].device)
        dist.all_reduce(last, op=dist.ReduceOp.MAX, group=self._group)
        source = dist.get_global_rank(self._group, int(last))
        for buffer in statistics:
            dist.broadcast(buffer, src=source, group=self._group)


def _find_statistics(model: nn.Module) -> list[Tensor]:
    """Running mean, variance and count of every module that keeps them."""
    return [
        buffer
        for module in model.modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        for _, buffer in module.named_buffers(recurse=False)
    ]
