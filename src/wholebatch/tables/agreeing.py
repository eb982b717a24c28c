"""A mistake that one rank finds is one that all ranks raise: nobody is left waiting for a rank that stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from wholebatch.sharing.messages import Group, gather_bytes, give_up
from wholebatch.tables.errors import TableError

Result = TypeVar("Result")


def agree(work: Callable[[], Result], group: Group, what: str) -> Result:
    """What ``work`` gives, once all ranks have done theirs.

    Args:
        work: by this rank alone: it waits for no other.
        what: for the diagnosis, where a rank is missing.

    Raises:
        TableError: on all ranks the same sentence: that of all, or of the first that found a mistake.
        MeetingError: a rank is missing; also where another error ended its work.
    """
    result, said = None, None
    try:
        result = work()
    except TableError as error:
        said = str(error)
    except BaseException as error:
        give_up(error, group)
        raise
    raise_first([json.loads(each) for each in gather_bytes(json.dumps(said).encode(), group, what)])
    return result  # type: ignore[return-value]


def raise_first(said: list[str | None]) -> None:
    """Raise what one of the ranks says is wrong, in rank order; None: it found nothing."""
    first = next((rank for rank, sentence in enumerate(said) if sentence is not None), None)
    if first is not None:
        alike = all(sentence == said[0] for sentence in said)
        raise TableError(f"{said[first]}" if alike else f"rank {first}: {said[first]}")
