"""A table of text, and its two renderings: on the terminal and in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich import box
from rich.table import Table


@dataclass
class Sheet:
    """Columns of which the first ``words`` hold words and the others numbers, which stand at the right."""

    title: str
    columns: tuple[str, ...]
    words: int
    rows: list[tuple[str, ...]] = field(default_factory=list)
    caption: str = ""

    def to_rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left", caption=self.caption or None, box=box.SIMPLE_HEAD)
        table.caption_justify = "left"
        for index, name in enumerate(self.columns):
            table.add_column(name, justify="left" if index < self.words else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """For a document."""
        rule = ["---" if index < self.words else "---:" for index in range(len(self.columns))]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows)]
        parts = [f"### {self.title}", "\n".join(lines)]
        return "\n\n".join([*parts, self.caption] if self.caption else parts) + "\n"
