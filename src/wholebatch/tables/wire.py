"""Columns between ranks, in Arrow's format; nothing is unpickled."""

from __future__ import annotations

import io
from collections.abc import Sequence

import polars as pl

from wholebatch.sharing.messages import Group, broadcast_bytes, exchange_bytes


def exchange_frames(frames: Sequence[pl.DataFrame], group: Group, what: str) -> list[pl.DataFrame]:
    """``frames[r]`` goes to rank r; returns what ranks had for this one, in rank order, but for those with nothing."""
    received = exchange_bytes([_pack(frame) for frame in frames], group, what)
    return [_unpack(content) for content in received if content]


def broadcast_frame(frame: pl.DataFrame | None, group: Group, what: str, source: int) -> pl.DataFrame:
    """What rank ``source`` has, on every rank."""
    return _unpack(broadcast_bytes(_pack(frame), group, what, source))


def _pack(frame: pl.DataFrame | None) -> bytes:
    if frame is None or frame.width == 0:
        return b""
    content = io.BytesIO()
    frame.write_ipc(content)
    return content.getvalue()


def _unpack(content: bytes) -> pl.DataFrame:
    return pl.read_ipc(io.BytesIO(content)) if content else pl.DataFrame()
