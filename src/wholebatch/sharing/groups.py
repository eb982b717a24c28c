"""From what a person says (``process_group=...``) to who shares the mini-batch."""

from __future__ import annotations

import contextlib
import weakref

import torch.distributed as dist
from torch.distributed import ProcessGroup

from wholebatch.sharing.processes import Processes
from wholebatch.sharing.sharing import Sharing

ProcessGroupLike = Sharing | ProcessGroup | str | None

_known: dict[int, Processes | None] = {}  # by the group's id, for as long as the group is there


def sharing_of(process_group: ProcessGroupLike) -> Sharing | None:
    """Who shares the mini-batch; None: this process has all of it.

    Args:
        process_group: None: nobody else. A process group, or ``"world"`` for the default one: its ranks; a group of one
            is nobody else. A sharing: itself.

    Raises:
        ValueError: the group is unknown, torch.distributed is not initialised, or this rank is not in the group.
        TypeError: it is nothing of all this.
    """
    if process_group is None:
        return None
    if isinstance(process_group, str | ProcessGroup):
        group = find_group(process_group)
        return _known[id(group)] if id(group) in _known else _remember(group)
    if isinstance(process_group, int):  # what torch gives the other ranks in place of a group
        rank = f"rank {dist.get_rank()}" if dist.is_available() and dist.is_initialized() else "this process"
        raise ValueError(
            f"{rank} is not a member of the process group; give its batch norms a group that it is in, or "
            "process_group=None"
        )
    check_process_group(process_group)
    return process_group


def check_process_group(process_group: object) -> None:
    """Refuse what cannot be one, where nothing is shared yet.

    Raises:
        ValueError: a name that is unknown.
        TypeError: neither a group, nor a name, a sharing or None. What torch gives ranks that are not in a group is
            none.
    """
    if isinstance(process_group, str) and process_group != "world":
        raise _unknown(process_group)
    shares = hasattr(process_group, "merge") and hasattr(process_group, "sum")
    if not shares and not isinstance(process_group, str | ProcessGroup | None):
        raise TypeError(
            f"process_group is of type {type(process_group).__name__}; it must be a group of torch.distributed that "
            "this rank is a member of (of a DeviceMesh: mesh.get_group()), 'world', a Sharing or None"
        )


def announce(process_group: ProcessGroupLike) -> None:
    """Let a group know of this process before it meets the others, who are told then if it fails on its way."""
    if isinstance(process_group, str | ProcessGroup) and dist.is_available() and dist.is_initialized():
        with contextlib.suppress(ValueError):  # to be told where it is used
            sharing_of(process_group)


def find_group(process_group: ProcessGroup | str) -> ProcessGroup:
    """The group itself, or the default one for ``"world"``; errors as :func:`sharing_of`."""
    if process_group != "world":  # the usual case: to ask what kind a group is takes a microsecond
        if isinstance(process_group, ProcessGroup):
            return process_group
        raise _unknown(process_group)
    world = dist.GroupMember.WORLD if dist.is_available() else None
    if world is None:
        raise ValueError(
            "process_group='world' needs torch.distributed: call torch.distributed.init_process_group() first "
            "(torchrun sets what it reads), or use process_group=None to normalise over this process alone"
        )
    return world


def _unknown(name: str) -> ValueError:
    return ValueError(f"process_group is {name!r}; the only name is 'world': or pass a group")


def _remember(group: ProcessGroup) -> Processes | None:
    _known[id(group)] = None if dist.get_world_size(group) == 1 else Processes(group)
    weakref.finalize(group, _known.pop, id(group))
    return _known[id(group)]
