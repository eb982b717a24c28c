"""Copies of tensors in host memory: pinned, and written behind the computation's back, where the device is a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef


class HostCopy:
    """The bytes of a storage, as they are now. ``load`` may be called any number of times."""

    __slots__ = ("__weakref__", "_device", "_loaded", "_written", "bytes")

    def __init__(self, storage: UntypedStorage) -> None:
        self._device = storage.device
        self._loaded: StorageWeakRef | None = None
        self._written: Any = None
        with plainly():
            source = _view(storage)
            if self._device.type == "cuda":
                self.bytes = torch.empty(len(source), dtype=torch.uint8, pin_memory=True)
                stream = _copying_stream(self._device)
                stream.wait_stream(torch.cuda.current_stream(self._device))
                with torch.cuda.stream(stream):
                    self.bytes.copy_(source, non_blocking=True)
                    self._written = stream.record_event()
                source.record_stream(stream)  # its memory goes to nobody else before it has been read
            else:
                self.bytes = source.to("cpu", copy=True)

    def load(self) -> UntypedStorage:
        """A storage on the device with these bytes: the one loaded before, while somebody still holds it."""
        storage = None if self._loaded is None else reach(self._loaded)
        if storage is None:
            with plainly():
                target = torch.empty(len(self.bytes), dtype=torch.uint8, device=self._device)
            storage = target.untyped_storage()
            self.write(storage)
            self._loaded = refer(storage)
        return storage

    def is_in(self, storage: UntypedStorage) -> bool:
        """Whether this storage is the one that was loaded last."""
        return self._loaded is not None and self._loaded.cdata == storage._cdata

    def write(self, storage: UntypedStorage) -> None:
        """Put the bytes into a storage of as many bytes."""
        with plainly():
            if self._written is not None:
                torch.cuda.current_stream(self._device).wait_event(self._written)
            _view(storage).copy_(self.bytes, non_blocking=self._written is not None)


def refer(storage: UntypedStorage) -> StorageWeakRef:
    """A weak reference, which keeps the storage's address from being used again."""
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def is_gone(weak: StorageWeakRef) -> bool:
    """Whether nobody holds the storage any more."""
    return bool(weak.expired())  # type: ignore[no-untyped-call]


def reach(weak: StorageWeakRef) -> UntypedStorage | None:
    """The storage, if it is still there."""
    storage: UntypedStorage | None = UntypedStorage._new_with_weak_ptr(weak.cdata)  # type: ignore[attr-defined]
    return storage


def view_as(storage: UntypedStorage, like: Geometry) -> Tensor:
    """A tensor of that dtype, shape and strides on the storage."""
    dtype, size, stride, offset = like
    with plainly():
        empty = torch.empty(0, dtype=dtype, device=storage.device)
        return empty.set_(storage, offset, size, stride)  # type: ignore[call-overload, no-any-return]


Geometry = tuple[torch.dtype, torch.Size, tuple[int, ...], int]


def geometry(x: Tensor) -> Geometry:
    """What :func:`view_as` needs of ``x``."""
    return x.dtype, x.size(), x.stride(), int(x.storage_offset())


def _view(storage: UntypedStorage) -> Tensor:
    view: Tensor = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return view


class plainly:
    """Context in which only bytes are moved: no autograd, nobody watches."""

    __slots__ = ("_graded", "_unwatched")

    def __enter__(self) -> None:
        self._graded = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        # Popping the modes one by one, as torch's own context does, takes ten times as long as what is done within.
        self._unwatched = torch._C._DisableTorchDispatch()  # type: ignore[attr-defined]

    def __exit__(self, *raised: Any) -> None:
        del self._unwatched
        torch._C._set_grad_enabled(self._graded)


@cache
def _copying_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
