"""A recording as one self-contained HTML page: what was found, in words and pictures, each with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from wholebatch.cost.recording import Recording
from wholebatch.cost.verticals import measured
from wholebatch.files import write
from wholebatch.pages import page
from wholebatch.pages.section import Section, Shown, Tile

TEMPLATES = resources.files("wholebatch.cost")
TITLE = "What normalisation costs"
MOST_TILES = 2
"""Of each section, where a page has several."""
NARROW_COLUMNS = 5
"""A table of no more columns than this fits half of the page."""


def write_page(recording: Recording, path: Path) -> None:
    """Render ``recording`` to ``path``, whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    write(path, render(recording))


def render(recording: Recording) -> str:
    """The page; equal recordings give equal pages."""
    return render_sections(recording, [module.describe(record) for module, record in measured(recording, "section")])


def render_sections(recording: Recording, sections: Sequence[Section]) -> str:
    """The page of ``sections``, with the origin of ``recording``."""
    sections = [replace(section, shown=arrange(name_apart(section))) for section in sections]
    return page.render(
        "page",
        TEMPLATES,
        [shown.picture for section in sections for shown in section.shown if shown.picture is not None],
        title=sections[0].title if len(sections) == 1 else TITLE,
        sections=sections,
        tiles=choose_tiles(sections),
        wholebatch=recording.wholebatch,
        origin=recording.origin,
        facts=_facts(recording),
    )


def name_apart(section: Section) -> list[Shown]:
    """Its pictures, each named after the section too: another section may have one of the same name."""
    return [
        shown
        if shown.picture is None
        else replace(shown, picture=replace(shown.picture, name=f"{section.name}-{shown.picture.name}"))
        for shown in section.shown
    ]


def arrange(shown: Sequence[Shown]) -> list[Shown]:
    """The same, laid out in rows of one or two pictures.

    A half without a neighbour becomes wide. Two halves keep their tables under them where both have a narrow one; else
    the tables follow the row in its whole width.
    """
    arranged: list[Shown] = []
    for half, run in groupby(shown, key=lambda s: s.picture is not None and s.picture.shape == "half"):
        together = list(run)
        if not half:
            arranged += together
            continue
        for first in range(0, len(together), 2):
            arranged += _row(together[first : first + 2])
    return arranged


def _row(halves: list[Shown]) -> list[Shown]:
    if len(halves) == 1:
        alone = halves[0].picture
        return [replace(halves[0], picture=alone and replace(alone, shape="wide"))]
    tables = [shown.table for shown in halves if shown.table is not None]
    if len(tables) == len(halves) and all(len(table.columns) <= NARROW_COLUMNS for table in tables):
        return halves
    return [*(Shown(shown.picture, None) for shown in halves), *(Shown(None, table) for table in tables)]


def choose_tiles(sections: Sequence[Section]) -> list[Tile]:
    """All of a page's only section, the first of each where there are several."""
    most = None if len(sections) == 1 else MOST_TILES
    return [tile for section in sections for tile in section.tiles[:most]]


def _facts(recording: Recording) -> list[tuple[str, Any]]:
    origin = recording.origin
    return [
        ("command", origin.command),
        ("date", origin.date.replace("T", " ").replace("Z", " UTC")),
        ("processor", origin.processor),
        ("cores that might be used", origin.cores),
        ("instruction set", origin.instruction_set),
        *origin.versions.items(),
    ]
