"""A rank's portion of a text file: a run of whole records, read without the rest of the file.

The file is cut at fixed bytes, and from each cut to the end of the record that it fell into. Whether a line end there
ends a record depends on whether it stands within quotation marks, and so on all marks before it: ranks count the marks
in their own bytes, and tell each other. That holds where marks only ever enclose whole fields, which is looked at, too;
where they do not, the file is not cut.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import polars as pl

from wholebatch.sharing.messages import Group, rank_in, tell
from wholebatch.tables.text import UNREADABLE, Layout, find_uneven, may_be_short, name_cells, parse_text

QUOTE = ord('"')
BLOCK = 1 << 22  # bytes looked at in one go
_MARK = b"\xef\xbb\xbf"  # of byte order: may stand before the first field


def read_portion(path: Path, layout: Layout, group: Group) -> pl.DataFrame | None:
    """This rank's records as cells of text, in the order of the file over the ranks; blank lines left out.

    None on every rank: the file cannot be cut, or one of the portions cannot be read as it should. Then it is to be
    read whole, which tells what is wrong, if anything is.
    """
    try:
        piece = _read_piece(path, group)
    except OSError:
        piece = None
    quotes = tell(None if piece is None else piece.content.count(b'"'), group, "quotation marks")
    if None in quotes or sum(quotes) % 2:
        return None
    rank = rank_in(group)[0]
    inside = sum(quotes[:rank]) % 2 == 1
    assert piece is not None
    regular = not sum(quotes) or _is_regular(piece, layout, inside)
    starts = tell(_find_start(piece, layout, inside) if regular else -1, group, "where records begin")
    if -1 in starts:
        return None
    # A rank without a start has one long record in its bytes, or a part of it.
    starts = list(accumulate([piece.size, *reversed(starts)], lambda after, start: after if start is None else start))
    begin, end = starts[::-1][rank : rank + 2]
    try:
        records = _read_records(path, piece, begin, end, b"" if rank == 0 else _header(layout))
        del piece
        frame = _parse(records, layout)
        del records
    except UNREADABLE:
        frame = None
    return frame if all(tell(frame is not None, group, "the portions")) else None


@dataclass(frozen=True)
class _Piece:
    """Bytes ``begin`` to ``end`` of a file of ``size`` bytes, and those next to them (line ends, beyond the file)."""

    content: bytes
    begin: int
    end: int
    size: int
    before: bytes
    after: bytes


def _read_piece(path: Path, group: Group) -> _Piece:
    rank, ranks = rank_in(group)
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        begin, end = (size * r // ranks for r in (rank, rank + 1))
        file.seek(max(begin - 1, 0))
        before = file.read(1) if begin else b""
        content = file.read(end - begin)
        return _Piece(content, begin, end, size, before, file.read(2))


def _is_regular(piece: _Piece, layout: Layout, inside: bool) -> bool:
    """Whether every mark opens a field, closes one, or is one of two that stand for one within a field."""
    end, apart = ord(layout.line_end), ord(layout.separator)
    content = piece.content
    outer = piece.before or bytes([end])
    if piece.begin == 0 and content.startswith(_MARK):
        content = content[len(_MARK) :]
    marks_before = int(inside)
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        left = content[start - 1 : start] if start else outer
        right = (content[start + BLOCK : start + BLOCK + 2] + piece.after)[:2].ljust(2, bytes([end]))
        values = np.frombuffer(left + block + right, np.uint8)
        marks = np.flatnonzero(values[1:-2] == QUOTE) + 1
        opens = (np.arange(len(marks)) + marks_before) % 2 == 0
        marks_before += len(marks)
        previous, following = values[marks[opens] - 1], values[marks[~opens] + 1]
        beyond = values[marks[~opens] + 2]
        returns = (following == ord("\r")) & (beyond == end)
        if not np.isin(previous, [end, apart, QUOTE]).all():
            return False
        if not (np.isin(following, [end, apart, QUOTE]) | returns).all():
            return False
    return True


def _find_start(piece: _Piece, layout: Layout, inside: bool) -> int | None:
    """Where the first record begins after one that ended in this piece; the first of the file begins at 0."""
    if piece.begin == 0:
        return 0
    end, content = layout.line_end.encode(), piece.content
    at = -1
    while True:
        found = content.find(end, at + 1)
        if found < 0:
            return None
        inside ^= content.count(b'"', at + 1, found) % 2 == 1
        if not inside:
            return piece.begin + found + 1
        at = found


def _header(layout: Layout) -> bytes:
    """A line that stands for the file's first."""
    return (layout.separator.join(map(str, range(len(layout.names)))) + layout.line_end).encode()


def _read_records(path: Path, piece: _Piece, begin: int, end: int, header: bytes) -> bytes:
    """``header`` and bytes ``begin`` to ``end`` of the file, of which the piece has the most."""
    own = memoryview(piece.content)[begin - piece.begin : max(end - piece.begin, 0)]
    beyond = max(piece.end, begin)
    if end <= beyond:
        return b"".join((header, own))
    with path.open("rb") as file:
        file.seek(beyond)
        return b"".join((header, own, file.read(end - beyond)))


def _parse(records: bytes, layout: Layout) -> pl.DataFrame | None:
    """None: a line is longer or shorter than the header."""
    frame = parse_text(records, layout)
    if frame.width != len(layout.names):
        return None
    if may_be_short(frame):
        with io.TextIOWrapper(io.BytesIO(records), encoding="utf-8-sig", newline="") as lines:
            if find_uneven(lines, layout) is not None:
                return None
    return name_cells(frame, layout)
