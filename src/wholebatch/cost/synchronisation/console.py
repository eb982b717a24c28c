"""The choices of synchronisation on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wholebatch.cost.comparison.summary import durations
from wholebatch.cost.synchronisation.record import Steps, Synchronisation
from wholebatch.cost.synchronisation.summary import (
    Parts,
    compare,
    epoch_seconds,
    everyone,
    last_scores,
    others,
    ratio,
    slow_one,
)
from wholebatch.cost.synchronisation.words import answers, base_of, notes, percent, score, whose

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

DASH = "–"


def tell(record: Synchronisation) -> list[RenderableType]:
    """The tables of steps and scores, what was found, and how it was measured."""
    from rich.text import Text

    caption = Text("in brackets: 20th to 80th percentile of rounds", style="dim")
    said: list[RenderableType] = [_steps(record), caption, _scores(record)]
    return [
        *said,
        Text("\n".join(answers(record))),
        Text(),
        Text("\n".join(f"· {note}" for note in notes(record)), style="dim"),
    ]


def _steps(record: Synchronisation) -> Table:
    table = _table("a step", ("batch norm over", "rank"))
    for name in ("time per step", f"over {base_of(record)}", "wait", "exchange"):
        table.add_column(name, justify="right")
    for slow in (False, True):
        base = record.timed(base_of(record), slow=slow)
        for choice in record.choices:
            one = record.timed(choice, slow=slow)
            if one is None or base is None:
                continue
            for place, (who, parts) in enumerate(_who(record, one)):
                step, low, high = durations([parts.median, parts.low, parts.high])
                first = (whose(record, choice), who, f"{step} [{low} – {high}]", f"{ratio(one, base):.2f}")
                again = ("", who, "", "")
                table.add_row(*(again if place else first), percent(parts.wait), percent(parts.exchange))
        table.add_section()
    return table


def _who(record: Synchronisation, one: Steps) -> list[tuple[str, Parts]]:
    if not one.slow:
        return [("each", everyone(one))]
    return [("the others", others(one)), (f"{record.ranks - 1}, {record.straggler:g} × as long", slow_one(one))]


def _scores(record: Synchronisation) -> Table:
    table = _table(f"{record.score_name} after {record.epochs} epochs, {len(record.seeds)} seeds", ("batch norm over",))
    base = base_of(record)
    for name in ("mean", "least – most", f"minus {base}", "standard error", "an epoch", "with the slow rank"):
        table.add_column(name, justify="right")
    for choice in record.choices:
        found = list(last_scores(record, choice).values())
        difference = None if choice == base else compare(record, choice, base)
        plain, slow = (epoch_seconds(record, choice, slow=slow) for slow in (False, True))
        table.add_row(
            whose(record, choice),
            score(sum(found) / len(found)) if found else "diverged",
            f"{score(min(found))} – {score(max(found))}" if len(found) > 1 else DASH,
            f"{difference.mean:+.4f}" if difference else DASH,
            score(difference.error) if difference and difference.error is not None else DASH,
            durations([plain])[0],
            durations([slow])[0],
        )
    return table


def _table(title: str, left: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in left:
        table.add_column(name, no_wrap=True)
    return table
