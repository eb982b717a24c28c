"""What a person sees while a measurement runs in stages: a bar on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import click
from rich.progress import TaskProgressColumn, TextColumn

from wholebatch.commands.bar import Bar


class Stages(Bar):
    """Progress on stderr: use it in a ``with`` block around the work; call it with each stage and its share done."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(quiet, TextColumn("{task.description}", markup=False), TaskProgressColumn())
        self._stage = ""
        self._task = self._bar.add_task("", total=1.0)

    def __call__(self, stage: str, share: float) -> None:
        """``stage`` is being done, and ``share`` of it, 0 to 1, is."""
        new, self._stage = stage != self._stage, stage
        if self.live:
            if new:
                self._bar.reset(self._task, description=stage, total=1.0)
            self._bar.update(self._task, completed=share)
        elif new and not self.quiet:
            click.echo(stage, err=True)
