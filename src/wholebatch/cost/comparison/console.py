"""The comparison on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wholebatch.cost.comparison import claim
from wholebatch.cost.comparison.norms import SHORT, words
from wholebatch.cost.comparison.record import Comparison
from wholebatch.cost.comparison.summary import Summary, answers, missed, notes, summarise
from wholebatch.cost.digits import durations

if TYPE_CHECKING:
    from rich.console import RenderableType

DASH = "–"


def tell(record: Comparison) -> list[RenderableType]:
    """The table of contenders, what was found, and how it was measured."""
    from rich.text import Text

    caption = Text("in brackets: 20th to 80th percentile of rounds; least and most of the seeds", style="dim")
    said: list[RenderableType] = [_contenders(record), caption, Text(), Text("\n".join(answers(record))), Text()]
    if record.trials:
        said += [_trials(record), Text()]
    return [*said, Text("\n".join(f"· {note}" for note in notes(record)), style="dim")]


def _contenders(record: Comparison) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("norm", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    for name in ("threads", "time per step", "over none", "steps to target", "time to target"):
        table.add_column(name, justify="right")
    table.add_column(f"best {record.score_name}", justify="right")
    for summary in summarise(record):
        contender, over = summary.contender, summary.over
        step, low, high = durations([contender.timing.median, contender.timing.low, contender.timing.high])
        cells = (
            SHORT[contender.norm],
            claim.place(contender.engine),
            str(contender.threads),
            f"{step} [{low} – {high}]",
            f"{over.ratio:.2f} [{claim.spread(over, ' – ')}]" if over else DASH,
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
    middle, least, most = (None if value is None else f"{value:,g}" for value in summary.steps)
    return f"{middle} {_range(summary, least, most)}"


def _seconds(summary: Summary) -> str:
    if summary.seconds[0] is None:
        return DASH
    middle, least, most = durations(summary.seconds)
    return f"{middle} {_range(summary, least, None if summary.seconds[2] is None else most)}"


def _range(summary: Summary, least: str | None, most: str | None) -> str:
    """The seeds' range in brackets; a dash where one seed has none."""
    return f"[{DASH}]" if summary.seeds == 1 else f"[{least} – {most or 'not reached'}]"


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
