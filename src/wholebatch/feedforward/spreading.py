"""The compiled engine over shards and ranks: what each of its runs is told, and what it asks for in between.

The engine itself decides when ranks meet (native/spread.cpp); how they do is below, in :mod:`wholebatch.sharing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wholebatch import kernels
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.exchange import Exchange
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.settings import Loss
from wholebatch.feedforward.weighing import weigh_rows
from wholebatch.sharing import Meeting
from wholebatch.sharing.arena import open_arena
from wholebatch.sharing.diagnosis import TRAINING
from wholebatch.sharing.reduction import Reduction

_KERNELS = ("portable", "avx2", "avx512")


@dataclass(frozen=True)
class _Parts:
    """Addresses for native/spread.h; 0: the engine has memory of its own. ``kept`` is what they are addresses of."""

    address: int = 0
    sums: int = 0
    alternates: bool = False
    kept: object = None
    reduction: Reduction | None = None


class Spreading:
    """One engine's mini-batches over the shards of ``peers``."""

    def __init__(self, peers: Peers, model: FeedForward, loss: Loss) -> None:
        self.peers, self._loss = peers, loss
        self._dtype = model.parts()[0].linear.weight.dtype
        names = [part.linear_name for part in model.parts()]
        self._whole = None if peers.processes is None else Exchange(peers.processes, names)
        self._layers = None
        if peers.waits and peers.nearby is not None and model.architecture.waits:
            self._layers = self._whole if peers.nearby is peers.processes else Exchange(peers.nearby, names)
        for processes in (peers.processes, peers.nearby):
            if processes is not None:
                processes.lookout.subject = TRAINING
        self._waits = model.architecture.waits
        self._layer_count = len(names)
        self._rounds = 0
        self._parts: _Parts | None = None

    def open(self, network: Any, data: Data, order: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        """What the engine is told of the run that comes; see native/spread.h.

        Raises:
            MeetingError: another rank failed, and where.
            ValueError: there is no memory for the parts of the gradient, or ranks run different kernels.
        """
        if self._parts is None:
            self._parts = self._open_parts(network)
        if self._parts.reduction is not None:
            self._parts.reduction.clear()
        peers, counts = self.peers, np.ascontiguousarray(counts, dtype=np.int64)
        told = {
            "shards": peers.shards,
            "first": peers.own.start,
            "own": len(peers.own),
            "near": len(peers.near),
            "late": peers.spread.sync == "late" and len(peers.near) < peers.shards,
            "overlap": peers.spread.overlap,
            "counts": counts,
            "weighings": self._weigh(data, order, counts),
            "whole": self._whole,
            "layers": self._layers,
            "parts": self._parts.address,
            "sums": self._parts.sums,
            "alternates": self._parts.alternates,
            "round": self._rounds,
        }
        self._rounds += len(counts)
        return told

    def _open_parts(self, network: Any) -> _Parts:
        """Memory for the parts of the gradient that shards have: of all ranks, where they are on one host."""
        peers, size, dtype = self.peers, network.part_size(), self._dtype
        if peers.processes is None or self._whole is None:
            return _Parts()
        self._check_kernels(peers)
        if peers.processes.shares_memory:
            # Where all ranks meet at layers, nobody comes to write before everyone has read.
            alternates = not (self._waits and len(peers.near) == peers.shards)
            arena = open_arena(peers.processes, (1 + alternates) * peers.shards * size * dtype.itemsize)
            return _Parts(arena.address, alternates=alternates, kept=arena)
        own = torch.zeros((len(peers.own), size), dtype=dtype)
        sums = torch.zeros(size, dtype=dtype)
        reduction = self._whole.reduction = Reduction(peers.processes, own, sums)
        self._whole.places = [network.part_of(layer) for layer in range(self._layer_count)]
        return _Parts(own.data_ptr(), sums.data_ptr(), kept=(own, sums), reduction=reduction)

    def _check_kernels(self, peers: Peers) -> None:
        """Other instructions round otherwise, and lay the weights out otherwise."""
        own = np.full((len(peers.own), 1), float(_KERNELS.index(kernels.instruction_set())))
        found = [_KERNELS[int(number)] for number in peers.gather(own, Meeting("engine", "kernels"))[:, 0]]
        if len(set(found)) > 1:
            told = ", ".join(f"{name} on rank {rank}" for rank, name in enumerate(found[:: len(peers.own)]))
            raise ValueError(
                f"the ranks run different kernels ({told}), and would not agree on the parameters; set "
                f"WHOLEBATCH_INSTRUCTION_SET to one that all processors have, on every rank"
            )

    def _weigh(self, data: Data, order: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
        """``(steps, shards, 3)`` of all shards; see :func:`weigh_rows`."""
        own = weigh_rows(data, order, counts[:, self.peers.own.start : self.peers.own.stop], self._loss)
        if own is None:
            return None
        told = self.peers.gather(own.reshape(len(own), -1), Meeting("epoch", "weights"))
        return np.ascontiguousarray(told.reshape(self.peers.shards, len(counts), 3).swapaxes(0, 1))
