"""Who shares the mini-batch: processes, micro-batches; and what activation checkpointing replays."""

from wholebatch.sharing.sharing import Meeting, Sharing

__all__ = ["Meeting", "Sharing"]
