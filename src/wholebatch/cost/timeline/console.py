"""The timeline on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from wholebatch.cost.timeline import words
from wholebatch.cost.timeline.record import Timeline
from wholebatch.pages.section import Cell
from wholebatch.pages.section import Table as Numbers


def tell(record: Timeline) -> list[RenderableType]:
    """What was trained, the tables, and then the answer, where it is read last."""
    s = record.settings
    net = " - ".join(map(str, s.sizes))
    norm = s.norm if s.norm == "none" else f"{s.norm} ({s.norm_position} the activation)"
    head = (
        f"net {net}, {s.parameters:,} parameters, norm {norm}, {s.dtype}; {s.batch_size:,} examples of {s.source} "
        f"a step, split by {s.split} over {s.threads} thread{'s' * (s.threads > 1)}"
    )
    tables = words.tables(record)
    shown = [_draw(tables[name]) for name in ("layers", "meetings", "threads") if name in tables]
    return [Text(head), *shown, *(Text(sentence) for sentence in words.answer(record))]


def _draw(numbers: Numbers) -> Table:
    table = Table(title=Text(numbers.caption), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(numbers.columns):
        is_number = any(isinstance(row[i], (int, float)) for row in numbers.rows)
        table.add_column(head, justify="right" if is_number else "left")
    for row in numbers.rows:
        table.add_row(*(Text(_format(cell)) for cell in row))
    return table


def _format(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:,.1f}" if isinstance(cell, float) else str(cell)
