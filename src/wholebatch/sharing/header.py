"""What a rank says before its vectors: which meeting it came for. Where headers differ, so do the ranks' places."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache

import torch

# native/mailbox.h counts on this size. The layer's end is kept, which tells more than its beginning; the digest tells
# apart what was cut to the same.
_LAYOUT = struct.Struct("<IIQ32s96s8s")
HEADER_BYTES = _LAYOUT.size
_DTYPES = {torch.float32: 1, torch.float64: 2}


@dataclass(frozen=True, slots=True)
class Header:
    """Equal on all ranks of a meeting.

    Attributes:
        layer: its name, or the end of it where it is longer than 96 bytes.
        phase: as in :class:`wholebatch.sharing.Meeting`.
        vectors: how many vectors each rank brings.
        channels: their length.
        dtype: their dtype.
    """

    layer: str
    phase: str
    vectors: int
    channels: int
    dtype: torch.dtype

    @classmethod
    def unpack(cls, packed: bytes) -> Header | None:
        """None where a rank has not written one yet."""
        vectors, code, channels, phase, layer, _ = _LAYOUT.unpack(packed)
        dtype = next((dtype for dtype, known in _DTYPES.items() if known == code), None)
        if dtype is None:
            return None
        return cls(_text(layer), _text(phase), vectors, channels, dtype)


@lru_cache(maxsize=4096)
def pack(layer: str, phase: str, vectors: int, channels: int, dtype: torch.dtype) -> bytes:
    """The header as ``HEADER_BYTES`` bytes.

    Raises:
        TypeError: the dtype is neither float32 nor float64.
    """
    if dtype not in _DTYPES:
        raise TypeError(f"ranks exchange float32 or float64, not {dtype} (layer {layer!r}, {phase})")
    name, kind = layer.encode(), phase.encode()
    digest = hashlib.blake2b(name + b"\0" + kind, digest_size=8).digest()
    return _LAYOUT.pack(vectors, _DTYPES[dtype], channels, kind[:32], name[-96:], digest)


@lru_cache(maxsize=4096)
def pack_both(layer: str, channels: int, dtype: torch.dtype) -> tuple[bytes, bytes]:
    """The headers of a layer's meetings: forward, of mean and M2, and backward, of two sums."""
    return pack(layer, "forward", 2, channels, dtype), pack(layer, "backward", 2, channels, dtype)


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")
