"""From what a person says (``process_group=...``) to who shares the mini-batch."""

from __future__ import annotations

from torch.distributed import ProcessGroup

from wholebatch.sharing.sharing import Sharing

ProcessGroupLike = Sharing | ProcessGroup | str | None


def sharing_of(process_group: ProcessGroupLike) -> Sharing | None:
    """Who shares the mini-batch; None: this process has all of it."""
    if process_group is None:
        return None
    if isinstance(process_group, Sharing):
        return process_group
    raise NotImplementedError
