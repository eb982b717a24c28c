"""Memory for large outputs, used again instead of being mapped afresh by the system at every call.

A C library hands large blocks back to the system when they are freed. The next output of that size then comes in pages
of 4 KiB that the system zeroes one by one while the kernel writes them, which takes longer than batch norm itself:
(65536, 64) in float32 takes torch 30 ms forward and backward, and 7.5 ms with a C library that was told to keep it.

So the memory of large outputs is kept here, as ordinary storages of torch that are also referred to from here: whatever
may be done with a tensor may be done with these outputs (``resize_``, ``share_memory_``, ``pickle``). One that nobody
else refers to any more is free. A pool with a deleter of its own would learn of that at once, but its storages could
not be resized.

At most ``WHOLEBATCH_KEPT_MIB`` MiB are kept, in use or free; by default a sixteenth of the machine's memory, and no
more than 1024. Beyond that, those that were handed out longest ago go first, and an output for which there is no room
comes from torch, as if this were not here. 0 keeps nothing.

A storage that is used again may be up to an eighth larger than its tensor. ``torch.save`` writes storages whole: save a
clone where that matters.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, UntypedStorage

from wholebatch.kernels.native import native_module

MEBI = 1 << 20
_FRESH: ContextVar[bool] = ContextVar("wholebatch.outputs", default=False)
LEAST = MEBI  # smaller ones come from memory that the C library keeps by itself


class Outputs:
    """Tensors of the size and layout of others, their contents unspecified.

    Args:
        limit: bytes that are kept at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._kept: list[UntypedStorage] = []  # the latest handed out last: what is still in cache is taken first
        self._alone = 0
        self._calibrate()

    def like(self, z: Tensor) -> Tensor:
        """Of the size, dtype and strides of ``z``, which is dense; contents unspecified."""
        size = z.numel() * z.element_size()
        # Whoever finds another thread here does not wait; a fork may have left the lock taken for good.
        if size < LEAST or size > self.limit or _FRESH.get() or not self._lock.acquire(blocking=False):
            return torch.empty_like(z)
        try:
            storage = self._take(size) or self._make(size)
            if storage is None:
                return torch.empty_like(z)
            self._kept.append(storage)
            return torch.empty(0, dtype=z.dtype).set_(storage, 0, z.shape, z.stride())
        finally:
            self._lock.release()

    def kept(self) -> int:
        """Bytes that are kept now, in use or free."""
        return sum(storage.nbytes() for storage in self._kept)

    def clear(self) -> None:
        """Keep nothing of what there is now; what is in use stays with those who use it."""
        with self._lock:
            self._kept.clear()

    def _calibrate(self) -> None:
        """How many references a storage has that is in the list alone: not the same in every Python. Where torch does
        not tell how often a storage is used, nothing is kept."""
        self._kept.append(UntypedStorage(1))  # type: ignore[no-untyped-call]
        uses = getattr(torch._C, "_storage_Use_Count", None)
        if uses is None or uses(self._kept[0]._cdata) != 1:
            self.limit = 0
        self._alone = self._references(0)
        self._kept.clear()

    def _references(self, i: int) -> int:
        return sys.getrefcount(self._kept[i])

    def _is_free(self, i: int) -> bool:
        uses: int = torch._C._storage_Use_Count(self._kept[i]._cdata)  # type: ignore[attr-defined]
        return uses == 1 and self._references(i) == self._alone

    def _take(self, size: int) -> UntypedStorage | None:
        """A free storage of the size, or up to an eighth larger."""
        for i in range(len(self._kept) - 1, -1, -1):
            if size <= self._kept[i].nbytes() <= size + size // 8 and self._is_free(i):
                storage = self._kept.pop(i)
                if not storage.is_shared():  # another process may read it still
                    return storage
        return None

    def _make(self, size: int) -> UntypedStorage | None:
        """A new storage, if there is room for it."""
        excess = self.kept() + size - self.limit
        i = 0
        while i < len(self._kept):
            if (excess > 0 or self._kept[i].nbytes() < LEAST) and self._is_free(i):  # some were resized to nothing
                excess -= self._kept.pop(i).nbytes()
            else:
                i += 1
        if excess > 0:
            return None
        storage = UntypedStorage(size)  # type: ignore[no-untyped-call]
        native_module().advise_huge_pages(storage.data_ptr(), size)
        return storage


@contextmanager
def fresh() -> Iterator[None]:
    """Context in which outputs come from torch: for whoever goes by when a storage begins and ends."""
    token = _FRESH.set(True)
    try:
        yield
    finally:
        _FRESH.reset(token)


@functools.cache
def outputs() -> Outputs:
    """Those of this process.

    Raises:
        ValueError: ``WHOLEBATCH_KEPT_MIB`` is no whole number of at least 0.
    """
    wish = os.environ.get("WHOLEBATCH_KEPT_MIB", "")
    if not wish:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        return Outputs(min(memory // 16, 1024 * MEBI))
    if not wish.isdecimal():
        raise ValueError(f"WHOLEBATCH_KEPT_MIB is {wish!r}; it must be a whole number of MiB, at least 0")
    return Outputs(int(wish) * MEBI)
