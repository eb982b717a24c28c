"""What every rank is told in place of waiting for ever: where each rank stands, what it does there, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import StringIO
from typing import Any, NamedTuple

from wholebatch.sharing.header import Header


class Subject(NamedTuple):
    """What the ranks meet for, in the words of a diagnosis.

    Attributes:
        name: the subject of its first sentence.
        uneven: the remedy where a rank may be missing for a reason of this subject's own.
        order: the remedy where the ranks are not at the same place.
    """

    name: str
    uneven: str
    order: str


BATCH_NORM = Subject(
    "batch norm over ranks",
    "; if it ran out of data before the others, train inside "
    "torch.distributed.algorithms.Join([JoinBatchNorms(model)])",
    "every rank passes the same batch norms in the same order; look for a branch that depends on the rank or "
    "on its data, for an exception that one rank caught in the middle of a step, and for models that differ",
)
TRAINING = Subject(
    "training over ranks",
    "",
    "every rank trains the same net with the same settings, and asks for the same epochs; look for a branch that "
    "depends on the rank, and for an exception that one rank caught in the middle of an epoch",
)
MESSAGES = Subject(
    "messages between ranks",
    "",
    "every rank exchanges the same messages in the same order; look for a branch that depends on the rank, and for an "
    "exception that one rank caught on its way",
)


class Doing(IntEnum):
    """What a rank is doing; the first seven as in native/mailbox.h."""

    ABSENT = 0
    OUTSIDE = 1
    MEETING = 2
    STANDING_BY = 3
    RAISED = 4
    ENDED = 5
    GAVE_UP = 6
    GONE = 7
    SILENT = 8


# A rank that does one of these will not come any more.
LOST = (Doing.RAISED, Doing.ENDED, Doing.GAVE_UP, Doing.GONE)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rank stands.

    Attributes:
        doing: what it does.
        number: of its last meeting, from 1; 0: it had none.
        seconds: for how long it has been doing that.
        header: of its last meeting.
        text: what it raised, or why it gave up.
        pid: its process, where it is known and on this host.
    """

    doing: Doing
    number: int = 0
    seconds: float = 0
    header: Header | None = None
    text: str = ""
    pid: int | None = None

    def __str__(self) -> str:
        process = "its process" if self.pid is None else f"process {self.pid}"
        meeting = "in this meeting" if self.number else "for the first meeting"
        return {
            Doing.ABSENT: "has not come to a first meeting",
            Doing.OUTSIDE: f"not in a meeting since {self.seconds:.1f} s",
            Doing.MEETING: f"waiting {meeting} since {self.seconds:.1f} s",
            Doing.STANDING_BY: "out of data, standing by",
            Doing.RAISED: f"raised {self.text}",
            Doing.ENDED: f"{process} has ended or left the group",
            Doing.GAVE_UP: f"gave up, because {self.text}",
            Doing.GONE: f"{process} is gone",
            Doing.SILENT: f"not heard of since its last meeting, {self.seconds:.1f} s ago",
        }[self.doing]


class MeetingError(RuntimeError):
    """The ranks of a group cannot meet at a batch-norm layer, or for a message; the text is a table of where each is.

    Attributes:
        cause: in a few words.
        positions: the table, in rank order.
    """

    def __init__(self, text: str, cause: str = "", positions: Sequence[Position] = ()) -> None:
        super().__init__(text)
        self.cause, self.positions = cause, tuple(positions)

    def again(self) -> MeetingError:
        """The same error, to be raised once more."""
        return MeetingError(str(self), self.cause, self.positions)

    def __reduce__(self) -> tuple[type[MeetingError], tuple[Any, ...]]:
        return MeetingError, (str(self), self.cause, self.positions)


def explain_absence(
    positions: Sequence[Position], rank: int, waited: float, broken: str = "", subject: Subject = BATCH_NORM
) -> MeetingError:
    """Some ranks did not come to a meeting in which ``rank`` waited so many seconds.

    ``broken``: what the system said of a connection that was lost.
    """
    lost = [r for r, position in enumerate(positions) if position.doing in LOST]
    # One that gave up did so for a reason, and that is to be told where it is known.
    lost = [r for r in lost if positions[r].doing != Doing.GAVE_UP] or lost
    if lost:
        cause = "; ".join(f"rank {r} {positions[r]}".replace(" process", ": process", 1) for r in lost)
        kinds = {positions[r].doing for r in lost}
        remedy = f"look at what happened on {_ranks(lost)} first"
        if kinds & {Doing.ENDED, Doing.GONE}:
            remedy += subject.uneven
        return _error(subject, cause, positions, rank, remedy)
    here = (Doing.MEETING, Doing.STANDING_BY)
    late = [r for r, position in enumerate(positions) if r != rank and position.doing not in here]
    if broken:
        cause = f"a connection was lost: {broken.splitlines()[0]}"
        remedy = "look at what happened on the ranks that were not heard of, and at the network"
        return _error(subject, cause, positions, rank, remedy)
    who = _ranks(late) if late else "another rank"
    remedy = (
        f"find out what keeps {who} (another collective, slow input, a batch that it left out){subject.uneven}; "
        "where more time is needed, wholebatch.sharing.set_timeout(seconds)"
    )
    return _error(subject, f"{who} did not come within {waited:.1f} s", positions, rank, remedy)


def explain_disagreement(positions: Sequence[Position], rank: int, subject: Subject = BATCH_NORM) -> MeetingError:
    """The ranks came to the same meeting with different headers."""
    headers = [position.header for position in positions if position.header and position.doing != Doing.STANDING_BY]
    first = headers[0]
    different = [
        name
        for name in ("layer", "phase", "channels", "dtype", "vectors")
        if any(getattr(header, name) != getattr(first, name) for header in headers)
    ]
    if {"layer", "phase"} & {*different} or not different:
        remedy = subject.order
    elif "dtype" in different:
        remedy = "give all ranks inputs of one dtype; look for autocast or .double() on some ranks only"
    else:
        remedy = "build the same model on all ranks"
    names = {"channels": "number of channels", "vectors": "number of vectors"}
    what = " and the ".join(names.get(name, name) for name in different or ["layer"])
    return _error(subject, f"the ranks disagree on the {what}", positions, rank, remedy)


def _error(subject: Subject, cause: str, positions: Sequence[Position], rank: int, remedy: str) -> MeetingError:
    own = positions[rank]
    where = f" at {own.header.layer} {own.header.phase}, meeting {own.number}" if own.header else ""
    text = f"{subject.name} stopped{where}: {cause}\n{_table(positions, rank)}\nTo do: {remedy}."
    return MeetingError(text, cause, positions)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _table(positions: Sequence[Position], rank: int) -> str:
    rows = []
    for r, position in enumerate(positions):
        header = position.header
        meeting = f"{header.layer} {header.phase}" if header else "none"
        channels, dtype = (str(header.channels), str(header.dtype).removeprefix("torch.")) if header else ("", "")
        row = (
            f"{r} (here)" if r == rank else str(r),
            meeting,
            str(position.number or ""),
            channels,
            dtype,
            str(position),
        )
        rows.append(row)
    return write_table(("rank", "last meeting", "number", "channels", "dtype", "doing"), rows, ("number", "channels"))


def write_table(names: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Lines of text, the columns named; those in ``right`` end at one place."""
    # Only here, where something has gone wrong already: importing it takes a while.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="")
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    written = StringIO()
    Console(file=written, width=1000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())
