"""From what a person says (``process_group=...``) to who shares the mini-batch."""

from __future__ import annotations

import weakref

import torch.distributed as dist
from torch.distributed import ProcessGroup

from wholebatch.sharing.processes import Processes
from wholebatch.sharing.sharing import Sharing

ProcessGroupLike = Sharing | ProcessGroup | str | None

_known: weakref.WeakKeyDictionary[ProcessGroup, Processes] = weakref.WeakKeyDictionary()


def sharing_of(process_group: ProcessGroupLike) -> Sharing | None:
    """Who shares the mini-batch; None: this process has all of it.

    Args:
        process_group: None: nobody else. A process group, or ``"world"`` for the default one: its ranks; a group of one
            is nobody else. A sharing: itself.

    Raises:
        ValueError: the group is unknown, torch.distributed is not initialised, or this rank is not in the group.
    """
    if process_group is None:
        return None
    if isinstance(process_group, str | ProcessGroup):
        process_group = find_group(process_group)
        return _known.get(process_group) or _remember(process_group)
    if isinstance(process_group, int):  # what torch gives the other ranks in place of a group
        raise ValueError(
            f"rank {dist.get_rank()} is not a member of the process group; give its batch norms a group that it is in, "
            "or process_group=None"
        )
    return process_group


def find_group(process_group: ProcessGroup | str) -> ProcessGroup:
    """The group itself, or the default one for ``"world"``; errors as :func:`sharing_of`."""
    if isinstance(process_group, ProcessGroup):
        return process_group
    if process_group != "world":
        raise ValueError(f"process_group must be a process group, 'world' or None; it is {process_group!r}")
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "process_group='world' needs torch.distributed: call torch.distributed.init_process_group() first "
            "(torchrun sets what it reads), or use process_group=None to normalise over this process alone"
        )
    world = dist.group.WORLD
    assert world is not None
    return world


def _remember(group: ProcessGroup) -> Processes | None:
    if dist.get_world_size(group) == 1:
        return None
    _known[group] = Processes(group)
    return _known[group]
