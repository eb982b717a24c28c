"""What a person sees while a measurement runs in stages: a bar on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Stages:
    """Progress on stderr: use it in a ``with`` block around the work; call it with each stage and its share done."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._stage = ""
        self._console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left", markup=False),
            console=self._console,
            expand=True,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0)

    @property
    def live(self) -> bool:
        """Whether there is a terminal that a bar can stand on."""
        return self._console.is_terminal and not self.quiet

    def __enter__(self) -> Stages:
        if self.live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self._bar.stop()

    def __call__(self, stage: str, share: float) -> None:
        """``stage`` is being done, and ``share`` of it, 0 to 1, is."""
        new, self._stage = stage != self._stage, stage
        if self.live:
            if new:
                self._bar.reset(self._task, description=stage, total=1.0)
            self._bar.update(self._task, completed=share)
        elif new and not self.quiet:
            click.echo(stage, err=True)
