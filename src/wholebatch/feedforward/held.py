"""Rows held out, over ranks: each predicts some, all get the outputs of all, and compute the same loss and score.

The rows of the whole are those of rank 0, then those of rank 1, and so on. What an engine's output rounds may depend on
a row's place among those predicted in one go (:attr:`Engine.predicted_rows`). So these blocks are cut from the whole,
and a rank predicts whole blocks: the rest of a block that begins on one rank is sent there once, by the ranks behind.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import scipy.sparse

from wholebatch.feedforward.agreement import tell_numbers
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.engine import Engine
from wholebatch.feedforward.evaluation import rate
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.settings import Loss
from wholebatch.feedforward.torch_threads import torch_threads


class Held:
    """The rows held out, of which this rank has ``data``: with weights on all ranks, or on none.

    Args:
        block: the engine's ``predicted_rows``.

    Attributes:
        whole: targets and weights of the rows of all ranks; inputs it has none.
    """

    def __init__(self, data: Data, loss: Loss, peers: Peers | None = None, block: int = 1) -> None:
        assert data.y is not None
        self._peers, self._loss = peers, loss
        y, weight = gather_rows(peers, data.y), data.sample_weight
        self.whole = Data(np.empty((len(y), 0)), y, None if weight is None else gather_rows(peers, weight))
        self._x = data.x if peers is None or block == 1 else _take_blocks(data.x, peers, block)

    def __len__(self) -> int:
        """How many rows this rank predicts."""
        return int(self._x.shape[0])

    def predict(self, engine: Engine) -> np.ndarray:
        """The outputs for the rows of all ranks, ``(N, out_features)``."""
        with torch_threads(None if self._peers is None else 1):
            out = engine.predict(self._x)
        return gather_rows(self._peers, out)

    def evaluate(self, engine: Engine) -> tuple[float, float]:
        """(loss, score) of the net in eval mode, over the rows of all ranks.

        Raises:
            ValueError: an output that is not finite.
        """
        out = self.predict(engine)
        with torch_threads(None if self._peers is None else 1):
            return rate(out, self.whole, self._loss)


def gather_rows(peers: Peers | None, own: np.ndarray) -> np.ndarray:
    """The rows ``(n, ...)`` of all ranks, one behind the other."""
    if peers is None or peers.ranks == 1:
        return own
    return np.concatenate([_unpack(content) for content in peers.tell(_pack(own), "validation")])


def _take_blocks(x: Any, peers: Peers, block: int) -> Any:
    """The rows of the blocks that begin among this rank's, ``x``; the first of these may belong to another's block."""
    ends = tell_numbers(peers, [x.shape[0]])[:, 0].astype(np.int64).cumsum()
    begin, end = int(ends[peers.rank]) - x.shape[0], int(ends[peers.rank])
    begins_block = begin // block * block
    contents = [b""] * peers.ranks
    cut = begin
    if begins_block < begin < end:
        owner = int(np.searchsorted(ends, begins_block, side="right"))
        cut = min(begins_block + block, end)
        contents[owner] = _pack(x[: cut - begin])
    got = [_unpack(content) for content in peers.exchange(contents, "validation") if content]
    kept = [x[cut - begin :], *got]
    return scipy.sparse.vstack(kept, format="csr") if scipy.sparse.issparse(x) else np.concatenate(kept)


def _pack(values: Any) -> bytes:
    written = BytesIO()
    if scipy.sparse.issparse(values):
        scipy.sparse.save_npz(written, values, compressed=False)
    else:
        np.save(written, values, allow_pickle=False)
    return written.getvalue()


def _unpack(content: bytes) -> Any:
    if content.startswith(b"PK"):  # an archive, of a sparse matrix; it holds no pickle either
        return scipy.sparse.load_npz(BytesIO(content))
    return np.load(BytesIO(content), allow_pickle=False)
