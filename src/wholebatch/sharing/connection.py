"""Connections of our own between the ranks of a group, by gloo: opened, and waited for in slices.

A group of our own leaves the person's as it was, whatever becomes of a collective in it, and is there where theirs
serves accelerators alone.
"""

from __future__ import annotations

import ctypes
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import Work
from torch.distributed.distributed_c10d import Store

from wholebatch.sharing.lookout import SLICE, Lookout

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import ProcessGroupGloo

_LONG = timedelta(days=1)  # gloo's own limit: ours come first


def connect(store: Store, lookout: Lookout) -> ProcessGroupGloo:
    """A group of the lookout's ranks, when all of them have come.

    Raises:
        MeetingError: a rank did not come.
    """
    from torch.distributed.distributed_c10d import ProcessGroupGloo  # not every build of torch has it

    made: list[ProcessGroupGloo] = []
    failed: list[RuntimeError] = []

    def open_group() -> None:
        try:
            made.append(ProcessGroupGloo(store, lookout.rank, len(lookout.known), _LONG))
        except RuntimeError as error:
            failed.append(error)

    # In a thread: it comes back only when all ranks are connected.
    thread = threading.Thread(target=open_group, name="wholebatch gloo", daemon=True)
    thread.start()
    since = time.monotonic()
    thread.join(SLICE)
    while thread.is_alive():
        lookout.look(time.monotonic() - since)
        thread.join(SLICE)
    if failed:
        raise lookout.explain(time.monotonic() - since, str(failed[0])) from failed[0]
    return made[0]


def wait(work: Work, lookout: Lookout, *, limited: bool = True) -> None:
    """Until the collective has ended; ``limited``: the timeout counts.

    Raises:
        MeetingError: it failed, or a rank will not come.
    """
    since = time.monotonic()
    while True:
        try:
            work.wait(timedelta(seconds=SLICE))
            return
        except RuntimeError:
            if work.is_completed():
                break
        lookout.look(time.monotonic() - since, limited=limited)
    try:
        work.wait(timedelta(seconds=SLICE))  # it may have come to a good end just after the slice did
    except RuntimeError as error:
        raise lookout.explain(time.monotonic() - since, str(error)) from error


def keep(group: ProcessGroupGloo) -> None:
    """Never destroy it: its destructor waits for its collectives, and one of them may never end."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
