"""Who shares the mini-batch: processes, micro-batches; and what activation checkpointing replays."""

from wholebatch.sharing.groups import ProcessGroupLike, sharing_of
from wholebatch.sharing.sharing import Meeting, Sharing

__all__ = ["Meeting", "ProcessGroupLike", "Sharing", "sharing_of"]
