"""``offload="cpu"``: what autograd saves goes to host memory, and so does what a waiting part holds.

A part that waits still holds tensors: the batch norm's caller has z, a residual branch its input. They cannot be taken
away, but their storages can be emptied (``resize_(0)``) and filled again when the part goes on. To find them, a part's
operations are watched: it owns the storages that they make. A storage that another part uses meanwhile (a weight that
autocast has cast once for all) is filled again for it, and stays.

Only saved for backward, each storage is copied once, whoever saves it and as whatever view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from wholebatch.kernels.batch_norm.outputs import fresh
from wholebatch.microbatches.host import Geometry, HostCopy, geometry, is_gone, reach, refer, view_as
from wholebatch.microbatches.trees import tensors_in, written_by
from wholebatch.recomputing import Held

# Smaller storages stay: a copy takes some microseconds whatever its size, and a layer's vectors do not fill memory.
_SMALL = 4096  # bytes


@dataclass(slots=True)
class _Owned:
    """A storage that a part's operation has made."""

    weak: StorageWeakRef
    size: int
    copy: HostCopy | None = None  # of what it holds now
    emptied: bool = False
    shared: bool = False


@dataclass(slots=True)
class _Packed:
    """A saved tensor in host memory."""

    copy: HostCopy
    geometry: Geometry


class Lot:
    """The storages of all parts of a run, by address. A weak reference keeps an address from being used again."""

    def __init__(self, device_only: bool) -> None:
        self.device_only = device_only  # what is in host memory anyway stays, where there is a device
        self.owned: dict[int, _Owned] = {}
        # By the address of what was loaded, which may since be another storage's.
        self.loaded: WeakValueDictionary[int, HostCopy] = WeakValueDictionary()
        self._many = 64

    def add(self, storage: UntypedStorage) -> _Owned:
        """Know a storage from now on."""
        if len(self.owned) > self._many:
            self.forget()
            self._many = 64 + 2 * len(self.owned)
        owned = self.owned[storage._cdata] = _Owned(refer(storage), storage.nbytes())
        return owned

    def find(self, x: Tensor) -> _Owned | None:
        """What is known of a tensor's storage; None: no part has made it."""
        return self.owned.get(x.untyped_storage()._cdata)

    def fill(self, owned: _Owned) -> None:
        """Bring an emptied storage's bytes back."""
        storage = reach(owned.weak)
        if storage is not None:
            assert owned.copy is not None
            storage.resize_(owned.size)
            owned.copy.write(storage)
        owned.emptied = False

    def forget(self) -> None:
        """Drop what is known of storages that are gone."""
        for key in [key for key, owned in self.owned.items() if is_gone(owned.weak)]:
            del self.owned[key]


class Parking(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The :class:`wholebatch.microbatches.store.Store` of one part, and the watch over its operations."""

    def __init__(self, lot: Lot) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lot = lot
        self._own: list[_Owned] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = set()
        for x in tensors_in((*args, *kwargs.values())):
            if x.layout != torch.strided:
                continue
            key = x.untyped_storage()._cdata
            before.add(key)
            owned = self._lot.owned.get(key)
            if owned is not None and owned.emptied:  # another part's, which waits
                self._lot.fill(owned)
                owned.shared = True
        result = func(*args, **kwargs)
        if func._schema.is_mutable:
            self._note_changes(func, args, kwargs)
        for y in tensors_in((result,)):
            if y.layout != torch.strided:
                continue
            storage = y.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._lot.owned:
                self._own_up(storage)
        return result

    def keep(self, x: Tensor) -> Callable[[], Tensor]:
        storage = x.untyped_storage()
        if storage.nbytes() < _SMALL:
            return lambda: x
        copy = self._lot.loaded.get(storage._cdata)
        if copy is not None and copy.is_in(storage):
            like = geometry(x)
        else:
            if storage.nbytes() > 2 * x.numel() * x.element_size():  # a piece of something large
                x = x.clone()
            copy, like = HostCopy(x.untyped_storage()), geometry(x)
        return lambda: self._unpack(_Packed(copy, like))

    @contextmanager
    def saving(self) -> Iterator[None]:
        with saved_tensors_hooks(self._pack, self._unpack), fresh(), self:
            yield

    def arrive(self) -> None: ...

    def note_output(self, y: Tensor, apply: Callable[..., Tensor], inputs: Sequence[Tensor | None]) -> None: ...

    def put_aside(self, z: Tensor, tokens: Tensor) -> None:
        stays = tokens.untyped_storage()._cdata  # the meeting reads it: with many channels it is not small
        self._own = [owned for owned in self._own if not is_gone(owned.weak)]
        for owned in self._own:
            storage = reach(owned.weak)
            if (
                storage is None
                or storage._cdata == stays
                or owned.shared
                or storage.nbytes() != owned.size
                or not storage.resizable()
            ):
                continue
            if owned.copy is None:
                owned.copy = HostCopy(storage)
            storage.resize_(0)
            owned.emptied = True

    def take_back(self) -> None:
        for owned in self._own:
            if owned.emptied:
                self._lot.fill(owned)

    def finish(self) -> None:
        self._own.clear()

    def _own_up(self, storage: UntypedStorage) -> None:
        if storage.nbytes() >= _SMALL and not (self._lot.device_only and storage.device.type == "cpu"):
            self._own.append(self._lot.add(storage))

    def _note_changes(self, func: Any, args: Any, kwargs: Any) -> None:
        """Copies of what an operation has written to are out of date."""
        for x in tensors_in(written_by(func, args, kwargs)):
            owned = self._lot.find(x)
            if owned is not None:
                owned.copy = None
                owned.size = x.untyped_storage().nbytes()

    def _pack(self, x: Tensor) -> _Packed | Held:
        owned = self._lot.find(x) if x.layout == torch.strided and type(x) is Tensor else None
        if owned is None or owned.shared or x.is_neg() or x.is_conj():
            return Held(x.detach(), x._version)
        if owned.copy is None:
            owned.copy = HostCopy(x.untyped_storage())
        return _Packed(owned.copy, geometry(x))

    def _unpack(self, packed: _Packed | Held) -> Tensor:
        if isinstance(packed, Held):
            return packed.unpack()
        storage = packed.copy.load()
        self._lot.loaded[storage._cdata] = packed.copy
        return view_as(storage, packed.geometry)
