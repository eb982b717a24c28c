"""How many bytes a computation holds at its peak, counted by the storages of the tensors that its operations meet."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Self

from torch import Tensor, UntypedStorage
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Live:
    """A context; afterwards ``peak`` is the most bytes that lived after any one operation.

    A storage is counted from the first operation that made it, read it or wrote it, or the first kernel that was given
    its address, until nobody holds it: each once, with the bytes that it has at the moment, none while it is emptied.
    Not counted: what an operation takes and gives back inside of itself, and what none meets, as the copies in host
    memory that ``offload="cpu"`` makes.

    Args:
        tensors: that live from the beginning.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self.peak = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self._modes = ExitStack()
        self.meet(tensors)

    def __enter__(self) -> Self:
        self._modes.enter_context(_Operations(self))
        self._modes.enter_context(_Addresses(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._modes.close()

    def meet(self, tree: Any) -> None:
        """Know all tensors of a structure, and count what is alive."""
        for tensor in tree_iter(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._known[storage._cdata] = weakref.ref(storage)
        held, gone = 0, []
        for key, known in self._known.items():
            alive = known()
            if alive is None:
                gone.append(key)
            else:
                held += alive.nbytes()
        for key in gone:
            del self._known[key]
        self.peak = max(self.peak, held)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of every operation."""

    def __init__(self, live: Live) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = live

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.live.meet((args, kwargs))
        made = function(*args, **(kwargs or {}))
        self.live.meet(made)
        return made


class _Addresses(TorchFunctionMode):
    """Tells of tensors that a compiled kernel is given by address, which no operation of torch's needs to have met."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.data_ptr:
            self.live.meet(args)
        return function(*args, **(kwargs or {}))
