"""A mistake that one rank finds is one that all ranks raise: nobody is left waiting for a rank that stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from wholebatch.sharing import MeetingError
from wholebatch.sharing.attempts import attempt
from wholebatch.sharing.messages import Group, give_up, rank_in, tell_first
from wholebatch.tables.errors import TableError

Result = TypeVar("Result")


@contextmanager
def giving_up(group: Group) -> Iterator[None]:
    """Whatever this rank raises in here, unless all raise it, the others are told, and do not wait for it."""
    try:
        yield
    except (TableError, MeetingError):
        raise
    except BaseException as error:
        give_up(error, group)
        raise


def agree(work: Callable[[], Result], group: Group, what: str) -> Result:
    """What ``work`` gives, once all ranks have done theirs. Inside of :func:`giving_up`.

    Args:
        work: by this rank alone: it waits for no other.
        what: for the diagnosis, where a rank is missing.

    Raises:
        TableError: on all ranks the same sentence: that of all, or of the first that found a mistake.
        MeetingError: a rank is missing; also where another error ended its work.
    """
    tried = attempt(work, TableError, group, what)
    if tried.first is not None:
        rank, failure = tried.first
        raise TableError(failure.text if tried.alike else f"rank {rank}: {failure.text}")
    return tried.result


def agree_first(work: Callable[[], Result], group: Group, what: str) -> Result | None:
    """What ``work`` gives on the first rank, the only one that does it; None on the others. Errors as :func:`agree`."""
    result, said = None, None
    if rank_in(group)[0] == 0:
        try:
            result = work()
        except TableError as error:
            said = str(error)
    if (told := tell_first(said, group, what)) is not None:
        raise TableError(told)
    return result
