"""A bar on stderr while something runs, where there is a terminal that it can stand on."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


class Bar:
    """Stands there in a ``with`` block, and goes with it.

    Args:
        quiet: show nothing.
        title: what stands before the bar.
        *figures: what stands behind it; the time that is left follows.
    """

    def __init__(self, quiet: bool, title: ProgressColumn, *figures: ProgressColumn) -> None:
        self.quiet = quiet
        self._console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self._bar = Progress(
            title,
            BarColumn(bar_width=None),
            *figures,
            TimeRemainingColumn(compact=True),
            TextColumn("left", markup=False),
            console=self._console,
            expand=True,
            transient=True,
        )

    @property
    def live(self) -> bool:
        """Whether there is a terminal that a bar can stand on."""
        return self._console.is_terminal and not self.quiet

    def __enter__(self) -> Self:
        if self.live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self._bar.stop()
