"""The comparison on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wholebatch.cost.comparison import claim
from wholebatch.cost.comparison.norms import words
from wholebatch.cost.comparison.record import Comparison
from wholebatch.cost.comparison.summary import Spread, Summary, answers, duration, missed, notes, summarise

if TYPE_CHECKING:
    from rich.console import RenderableType

DASH = "–"


def tell(record: Comparison) -> list[RenderableType]:
    """The table of contenders, what was found, and how it was measured."""
    from rich.text import Text

    said: list[RenderableType] = [_contenders(record), Text("\n".join(answers(record))), Text()]
    if record.trials:
        said += [_trials(record), Text()]
    return [*said, Text("\n".join(notes(record)), style="dim")]


def _contenders(record: Comparison) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("norm")
    table.add_column("engine")
    for name in ("threads", "time per step", "p20 – p80", "over none", "p20 – p80"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("steps to target", justify="right")
    table.add_column("time to target", justify="right")
    table.add_column(f"best {record.score_name}", justify="right")
    for summary in summarise(record):
        contender, over = summary.contender, summary.over
        cells = (
            words(contender.norm),
            claim.place(contender.engine),
            str(contender.threads),
            duration(contender.timing.median),
            f"{duration(contender.timing.low)} – {duration(contender.timing.high)}",
            f"{over.ratio:.2f}" if over else DASH,
            f"{over.low:.2f} – {over.high:.2f}" if over else DASH,
            _steps(summary, record),
            "" if record.target.score is not None and summary.steps[0] is None else _seconds(summary),
            f"{summary.best:.4f}",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _steps(summary: Summary, record: Comparison) -> str:
    if record.target.score is None:
        return DASH
    if summary.steps[0] is None:
        return missed(summary, record)
    return f"{summary.steps[0]:,g}{_range(summary.steps, summary.seeds, lambda value: f'{value:,g}')}"


def _seconds(summary: Summary) -> str:
    if summary.seconds[0] is None:
        return DASH
    return f"{duration(summary.seconds[0])}{_range(summary.seconds, summary.seeds, duration)}"


def _range(spread: Spread, seeds: int, show: Callable[[float], str]) -> str:
    """The seeds' range in brackets; a dash where one seed has none."""
    _, least, most = spread
    if seeds == 1 or least is None:
        return f" [{DASH}]"
    return f" [{show(least)} – {'not reached' if most is None else show(most)}]"


def _trials(record: Comparison) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="learning rates", title_justify="left")
    table.add_column("norm")
    for name in ("learning rate", f"best {record.score_name}", "chosen"):
        table.add_column(name, justify="right")
    for trial in record.trials:
        best = "diverged" if trial.best is None else f"{trial.best:.4f}"
        table.add_row(words(trial.norm), f"{trial.learning_rate:g}", best, "yes" if trial.chosen else "")
    return table
