"""The choices of synchronisation on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wholebatch.cost.digits import durations, four_decimals
from wholebatch.cost.synchronisation.record import Delay, Steps, Synchronisation
from wholebatch.cost.synchronisation.summary import (
    Parts,
    compare,
    epoch_seconds,
    last_one,
    last_scores,
    ratio,
    waiting,
)
from wholebatch.cost.synchronisation.words import answers, base_of, notes, percent, who_is_late, whose

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

DASH = "–"


def tell(record: Synchronisation) -> list[RenderableType]:
    """The tables of steps and scores, what was found, and how it was measured."""
    from rich.text import Text

    caption = Text("in brackets: 20th to 80th percentile of rounds", style="dim")
    said: list[RenderableType] = [*(_steps(record, delay) for delay in record.delays), caption, _scores(record)]
    return [
        *said,
        Text("\n".join(answers(record))),
        Text(),
        Text("\n".join(f"· {note}" for note in notes(record)), style="dim"),
    ]


def _steps(record: Synchronisation, delay: Delay) -> Table:
    late = who_is_late(record, delay)
    table = _table(f"a step {late[:1].lower()}{late[1:]}".strip(), ("batch norm over", "rank"))
    for name in ("time per step", f"over {base_of(record)}", "wait", "exchange"):
        table.add_column(name, justify="right")
    base = record.timed(base_of(record), delay)
    for choice in record.choices:
        one = record.timed(choice, delay)
        if one is None or base is None:
            continue
        for place, (who, parts) in enumerate(_who(record, one)):
            step, low, high = durations([parts.median, parts.low, parts.high])
            first = (whose(record, choice), who, f"{step} [{low} – {high}]", f"{ratio(one, base):.2f}")
            again = ("", who, "", "")
            table.add_row(*(again if place else first), percent(parts.wait), percent(parts.exchange))
    return table


def _who(record: Synchronisation, one: Steps) -> list[tuple[str, Parts]]:
    if one.delay != "last":
        return [("each", waiting(one))]
    return [("the others", waiting(one)), (f"{record.ranks - 1}", last_one(one))]


def _scores(record: Synchronisation) -> Table:
    table = _table(f"{record.score_name} after {record.epochs} epochs, {len(record.seeds)} seeds", ("batch norm over",))
    base = base_of(record)
    for name in ("mean", "least – most", f"minus {base}", "standard error", "an epoch"):
        table.add_column(name, justify="right")
    for choice in record.choices:
        found = list(last_scores(record, choice).values())
        difference = None if choice == base else compare(record, choice, base)
        table.add_row(
            whose(record, choice),
            four_decimals(sum(found) / len(found)) if found else "diverged",
            f"{four_decimals(min(found))} – {four_decimals(max(found))}" if len(found) > 1 else DASH,
            f"{difference.mean:+.4f}" if difference else DASH,
            four_decimals(difference.error) if difference and difference.error is not None else DASH,
            durations([epoch_seconds(record, choice, "none")])[0],
        )
    return table


def _table(title: str, left: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in left:
        table.add_column(name, no_wrap=True)
    return table
