"""Exact gradient accumulation: micro-batches go through a model in lockstep, and meet at each batch norm."""

from wholebatch.microbatches.accumulate import accumulate
from wholebatch.microbatches.errors import LockstepError
from wholebatch.microbatches.lockstep import lockstep

__all__ = ["LockstepError", "accumulate", "lockstep"]
