"""Memory that all ranks of a host map, for numbers that are too many for a meeting.

It has no name in any file system (memfd): the system frees it with its last user, however that one ends. Rank 0 makes
it, and the others open it through ``/proc/<pid>/fd``, as they did with the group's mailbox.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets

import numpy as np
import torch

from wholebatch.sharing.processes import Processes
from wholebatch.sharing.sharing import Meeting

_FRONT = mmap.PAGESIZE  # its first page: a number that tells this memory from another at the same path


class Arena:
    """``size`` bytes of zeros from ``address`` on, for as long as the object lives."""

    def __init__(self, memory: mmap.mmap) -> None:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # kernels without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        self._values = np.frombuffer(memory, np.uint8)  # keeps the memory mapped
        self.size = len(memory) - _FRONT
        self.address = self._values.ctypes.data + _FRONT


def open_arena(processes: Processes, size: int) -> Arena:
    """The same memory on every rank; all call this together.

    Raises:
        ValueError: there is no memory for it, on every rank.
        MeetingError: a rank did not come.
    """
    descriptor, cookie, told = -1, 0, (0, -1, 0)
    if processes.rank == 0:
        cookie = 1 + secrets.randbits(52)  # exact in float64
        with contextlib.suppress(OSError):
            descriptor = _make(size, cookie)
            told = (os.getpid(), descriptor, cookie)
    maker = processes.gather(torch.tensor([told], dtype=torch.float64), Meeting("arena", "opening"))[0, 0]
    pid, there, cookie = (int(value) for value in maker)
    memory = None
    if there >= 0:
        with contextlib.suppress(OSError, ValueError):
            memory = _open(f"/proc/{pid}/fd/{there}" if processes.rank else descriptor, size, cookie)
    opened = processes.gather(torch.tensor([[memory is not None]], dtype=torch.float64), Meeting("arena", "opened"))
    if descriptor >= 0:
        os.close(descriptor)
    if memory is None or not bool(opened.all()):
        raise ValueError(
            f"the ranks of this host cannot share {size:,} bytes of memory, which the parts of the gradient take: is "
            "that much free? Choose fewer shards, or a smaller net"
        )
    return Arena(memory)


def _make(size: int, cookie: int) -> int:
    descriptor = os.memfd_create("wholebatch", os.MFD_CLOEXEC)
    try:
        # Now, where it can fail, and not at the first touch, where the process would be killed.
        os.posix_fallocate(descriptor, 0, _FRONT + size)
        os.pwrite(descriptor, np.uint64(cookie).tobytes(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: str | int, size: int, cookie: int) -> mmap.mmap:
    descriptor = os.dup(path) if isinstance(path, int) else os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != _FRONT + size:
            raise ValueError(f"{path} is not the group's memory: it has another size")
        if int(np.frombuffer(os.pread(descriptor, 8, 0), np.uint64)[0]) != cookie:
            raise ValueError(f"{path} is not the group's memory: it has another number")
        return mmap.mmap(descriptor, _FRONT + size)
    finally:
        os.close(descriptor)
