"""Who shares the mini-batch: processes, micro-batches; and what activation checkpointing replays."""

from wholebatch.sharing.diagnosis import MeetingError
from wholebatch.sharing.groups import ProcessGroupLike, announce, check_process_group, sharing_of
from wholebatch.sharing.join import JoinBatchNorms
from wholebatch.sharing.sharing import Meeting, Sharing
from wholebatch.sharing.timeout import set_timeout

__all__ = [
    "JoinBatchNorms",
    "Meeting",
    "MeetingError",
    "ProcessGroupLike",
    "Sharing",
    "announce",
    "check_process_group",
    "set_timeout",
    "sharing_of",
]
