"""What ranks try each by itself, told to all: a rank that raised alone would let the others wait for it.

Which errors are expected, and in which words they are raised again, is up to those who ask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, cast

from wholebatch.sharing.messages import Group, tell

Result = TypeVar("Result")


class Failure(NamedTuple):
    """An error in words: the name of its type, and its message."""

    kind: str
    text: str


@dataclass(frozen=True)
class Attempt(Generic[Result]):
    """What came of a try on all ranks.

    Attributes:
        own: the error of this rank; None: it went well here.
        told: what became of it on each rank, None where it went well.
    """

    _result: Result | None
    own: Exception | None
    told: list[Failure | None]

    @property
    def first(self) -> tuple[int, Failure] | None:
        """The first rank that failed, and how; None where none did."""
        return next(((rank, failure) for rank, failure in enumerate(self.told) if failure is not None), None)

    @property
    def alike(self) -> bool:
        """Whether all ranks came to the same."""
        return all(failure == self.told[0] for failure in self.told)

    @property
    def result(self) -> Result:
        """Of this rank, where it went well."""
        return cast(Result, self._result)


def attempt(
    work: Callable[[], Result], expected: type[Exception] | tuple[type[Exception], ...], group: Group, what: str
) -> Attempt[Result]:
    """What ``work`` comes to on all ranks; it is done by each by itself, and waits for no other.

    Args:
        work: to be tried.
        expected: errors that are told; any other is raised here at once, and the others learn of it as of a rank that
            does not come.
        group: whose ranks, each of which calls this.
        what: it is about, for the diagnosis.

    Raises:
        MeetingError: a rank does not come, and a table of where they are.
    """
    result, own = None, None
    try:
        result = work()
    except expected as error:
        own = error
    said = None if own is None else (_kind(own), str(own))
    return Attempt(result, own, [None if other is None else Failure(*other) for other in tell(said, group, what)])


def _kind(error: Exception) -> str:
    """``ValueError`` and ``TypeError`` also for what is derived from them."""
    for kind in (ValueError, TypeError):
        if isinstance(error, kind):
            return kind.__name__
    return type(error).__name__
