"""What is wrong with a table, in one sentence that a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class TableError(ValueError):
    """A mistake in a table. The message says what, where and the remedy, and stands without a traceback."""


def quoted(names: Sequence[object], most: int = 8) -> str:
    """``'a', 'b' and 3 more``: names as they stand in messages."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def columns_word(names: Sequence[str], most: int = 8) -> str:
    """``column 'a'`` or ``columns 'a', 'b'``."""
    return f"column{'s' if len(names) > 1 else ''} {quoted(names, most)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`` (did you mean 'Age'?)``, or nothing where no name is close."""
    by_fold = {other.strip().casefold(): other for other in known}
    near = difflib.get_close_matches(name.strip().casefold(), list(by_fold), n=1)
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""


def unique_names(names: Sequence[str]) -> list[str]:
    """The same names, an underscore after one that stood before."""
    unique: dict[str, None] = {}
    for name in names:
        while name in unique:
            name += "_"
        unique[name] = None
    return list(unique)


def require_columns(wanted: Sequence[str], known: Sequence[str], purpose: str) -> None:
    """Raise :class:`TableError` where a wanted column is not in the table, naming every one that is missing."""
    there = set(known)
    missing = [name for name in wanted if name not in there]
    if not missing:
        return
    hint = did_you_mean(missing[0], known) if len(missing) == 1 else ""
    holds = f"it has {quoted(list(known), 12)}" if known else "it has no columns"
    raise TableError(f"the table has no {columns_word(missing, len(missing))}, {purpose}{hint or f'; {holds}'}")
