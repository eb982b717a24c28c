"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Self

import click
from rich import box
from rich.console import Console
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from wholebatch.commands.bar import Bar
from wholebatch.runs import Recording, Session

QUIET_SECONDS = 30.0
"""Where there is no terminal, a line is written for each tenth of the epochs, and after so many seconds without one."""
MOST_NOTES = 5


class _Speed(ProgressColumn):
    """Training examples per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} examples/s" if task.speed else "", style="progress.data.speed")


class Display(Bar):
    """Progress of a session on stderr; use it in a ``with`` block around the training."""

    def __init__(self, session: Session, quiet: bool) -> None:
        super().__init__(
            quiet,
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}", markup=False),
            TextColumn("{task.fields[measures]}", markup=False),
            _Speed(),
        )
        self.session = session
        self.total = session.settings.epochs
        self.rows = len(session.prepared.whole["training"])
        self._latest = ""
        self._told = time.monotonic()
        self._task = self._bar.add_task(
            "train",
            total=self.total * self.rows,
            completed=session.epochs_done * self.rows,
            epoch=min(session.epochs_done + 1, self.total),
            epochs=self.total,
            measures="",
        )

    def __enter__(self) -> Self:
        if not self.quiet:
            for line in _introduction(self.session):
                click.echo(line, err=True)
        return super().__enter__()

    def progress(self, epoch: int, done: int, loss: float) -> None:
        """Within an epoch: (epoch from 1, examples done in it, mean loss so far)."""
        if self.live:
            completed = (epoch - 1) * self.rows + done
            measures = f"loss {loss:.4f}{self._latest}"
            self._bar.update(self._task, completed=completed, epoch=epoch, measures=measures)

    def epoch(self, row: dict[str, float]) -> None:
        """After an epoch: its line of metrics."""
        number = int(row["epoch"])
        if "validation_score" in row:
            self._latest = f"  validation {row['validation_score']:.4f}"
        if self.live:
            self._bar.update(
                self._task,
                completed=number * self.rows,
                epoch=min(number + 1, self.total),
                measures=f"loss {row['loss']:.4f}{self._latest}",
            )
            return
        due = number * 10 // self.total > (number - 1) * 10 // self.total or number == 1
        if not self.quiet and (due or time.monotonic() - self._told > QUIET_SECONDS):
            self._told = time.monotonic()
            speed = f"{row['examples_per_second']:,.0f} examples/s"
            click.echo(f"epoch {number}/{self.total}  loss {row['loss']:.4f}{self._latest}  {speed}", err=True)


def show_scores(recording: Recording) -> None:
    """The scores of each part of the table, on stdout."""
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    table.add_column("part")
    for name in ("rows", "loss", recording.score_name):
        table.add_column(name, justify="right")
    for score in recording.scores:
        values = ("-" if value is None else f"{value:.4f}" for value in (score.loss, score.score))
        table.add_row(score.part, f"{score.rows:,}", *values)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _introduction(session: Session) -> list[str]:
    """What is about to be trained, in a few lines."""
    prepared, config = session.prepared, session.config
    rows = ", ".join(f"{len(whole):,} {name}" for name, whole in prepared.whole.items())
    sizes = " - ".join(map(str, session.net.architecture.sizes))
    parameters = sum(p.numel() for p in session.net.parameters())
    engine = {"reference": "reference", "device": f"device engine on {config.settings.device}"}.get(
        config.engine, f"{config.engine} engine, {config.instruction_set}"
    )
    notes = [*prepared.target.notes, *prepared.preprocessing.notes]
    lines = [
        f"{config.settings.table}: {rows} rows; {prepared.target.task} of {', '.join(prepared.target.columns)}",
        f"net {sizes}, {parameters:,} parameters; {engine}",
        *(f"note: {note}" for note in notes[:MOST_NOTES]),
        *([f"note: {len(notes) - MOST_NOTES} more notes stand in the report"] if len(notes) > MOST_NOTES else []),
    ]
    if session.complete:
        return [f"the run in {session.run.path} is complete ({session.epochs_done} epochs); its report is made again"]
    if session.epochs_done:
        lines.append(f"going on after epoch {session.epochs_done} of {session.settings.epochs}")
    return lines
