"""What ranks have to agree on before they train together, told to all of them, so that all of them fail or none does.

A rank that raises alone, on a wrong number of columns, say, leaves the others waiting for it. So a mistake that one
rank finds is told to all, and all raise the same error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.peers import Peers
from wholebatch.sharing.alike import find_difference
from wholebatch.sharing.attempts import attempt
from wholebatch.sharing.messages import tell

T = TypeVar("T")


def do_together(peers: Peers | None, do: Callable[[], T]) -> T:
    """What ``do()`` returns; where it raises an ``Exception`` on some rank, every rank raises.

    Raises:
        ValueError, TypeError: the error of the first rank that failed, which is named unless all failed alike.
        Exception: without peers, whatever ``do`` raised; with peers also where all ranks failed alike.
    """
    if peers is None or peers.ranks == 1:
        return do()
    tried = attempt(do, Exception, peers.group, "errors")
    if tried.first is None:
        return tried.result
    if tried.own is not None and tried.alike:
        raise tried.own
    rank, failure = tried.first
    kind = TypeError if failure.kind == "TypeError" else ValueError
    text = failure.text if failure.kind in ("ValueError", "TypeError") else f"{failure.kind}: {failure.text}"
    raise kind(f"on rank {rank} of {peers.ranks}: {text}") from tried.own


def check_equal(peers: Peers, values: dict[str, str]) -> None:
    """Raise, on every rank, where the ranks have other values.

    Args:
        values: by name, what must be the same on all ranks, in words.

    Raises:
        ValueError: naming the first that differs, and two ranks that differ in it.
    """
    told = tell(values, peers.group, "settings")
    if (found := find_difference(told)) is not None:
        name, rank = found
        raise ValueError(
            f"the ranks disagree on {name}: rank 0 has {told[0].get(name)}, rank {rank} has {told[rank].get(name)}; "
            "give all ranks the same"
        )


def tell_numbers(peers: Peers | None, numbers: Iterable[float]) -> np.ndarray:
    """The numbers of all ranks, ``(ranks, k)`` float64; every rank has equally many."""
    own = np.array([*numbers], dtype=np.float64)
    if peers is None:
        return own[None]
    return np.stack([np.frombuffer(content) for content in peers.tell(own.tobytes(), "numbers")])


def take_net(peers: Peers, model: FeedForward) -> None:
    """Give every rank's net the parameters and running statistics that it has on rank 0."""
    if peers.ranks == 1:
        return
    state = model.state_dict()
    told = peers.take(b"".join(_bytes(tensor) for tensor in state.values()), "parameters")
    begin = 0
    for tensor in state.values():
        size = tensor.numel() * tensor.element_size()
        flat = torch.frombuffer(bytearray(told[begin : begin + size]), dtype=tensor.dtype)
        tensor.copy_(flat.view(tensor.shape))
        begin += size


def digest(tensors: dict[str, Tensor]) -> str:
    """A few characters that differ where the tensors do."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + _bytes(tensor))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
