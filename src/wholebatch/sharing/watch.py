"""The meetings of this process, for whoever measures them: with whom, which, and how long it stood there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Watcher = Callable[[tuple[int, ...], bytes, float], None]

watchers: list[Watcher] = []  # read at each meeting, which takes 2 microseconds: so a plain list, mostly empty


@contextmanager
def watching(see: Watcher) -> Iterator[None]:
    """Call ``see(ranks, header, seconds)`` after each meeting over the host's memory or network.

    ``ranks`` are those of the group, as the default group counts them; ``header`` as :mod:`wholebatch.sharing.header`
    packs it; ``seconds`` from this rank's arrival to its leaving. Meetings on accelerators, which run when their stream
    comes to them, are not seen.
    """
    watchers.append(see)
    try:
        yield
    finally:
        watchers.remove(see)
