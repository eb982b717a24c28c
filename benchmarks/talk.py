"""What a measurement says: tables on standard output; notes, and what it is about to do, on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console

WIDTH = 120  # where the output is no terminal


class Talk:
    """A context, in which a terminal shows the present work."""

    def __init__(self) -> None:
        out, err = Console(), Console(stderr=True)
        self.out = out if out.is_terminal else Console(width=WIDTH)
        self.err = err
        self._status = err.status("starting")
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def progress(self, what: str) -> None:
        """Show what is being done; only a terminal does."""
        self._status.update(what)

    def note(self, sentence: str) -> None:
        """Say something that the reader of the tables must know; it is kept for other renderings."""
        self.notes.append(sentence)
        self.err.print(f"note: {sentence}", highlight=False, markup=False, soft_wrap=True)
