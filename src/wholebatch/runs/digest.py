"""What tells two prepared tables apart: SHA-256 over names, row numbers, inputs, targets and weights of each part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np

from wholebatch.runs.parts import PARTS, Part


def digest_rows(names: Iterable[str], parts: Mapping[str, Part]) -> str:
    """Of one shard: over the rows themselves."""
    total = hashlib.sha256(repr(list(names)).encode())
    for name in PARTS:
        if name in parts:
            _add(total, parts[name])
        total.update(b"|")
    return total.hexdigest()


def digest_shards(names: Iterable[str], shards: Mapping[str, list[str]]) -> str:
    """Of several shards: over the digests of all shards of each part, in order, whoever made them."""
    total = hashlib.sha256(repr(list(names)).encode())
    for name in PARTS:
        total.update("".join(shards.get(name, [])).encode() + b"|")
    return total.hexdigest()


def shard_digests(part: Part, bounds: np.ndarray) -> list[str]:
    """One for each shard of a part's rows, which begin and end at ``bounds``."""
    found = []
    for begin, end in pairwise(bounds - bounds[0]):
        total = hashlib.sha256()
        _add(total, part[begin:end])
        found.append(total.hexdigest())
    return found


def _add(total: hashlib._Hash, part: Part) -> None:
    for values in (part.rows, part.x, part.y, part.weight):
        total.update(b"-" if values is None else repr((values.shape, str(values.dtype))).encode())
        total.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
