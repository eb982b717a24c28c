"""What ``compare``, ``timeline``, ``profile``, ``plan`` and ``sync`` share: the folder of a recording and its pages.

::

    recording.json    all that was measured; the others are made from it, here or elsewhere (`wholebatch report`)
    report.html       the page
    trace.json        for Perfetto or chrome://tracing, where there is something to trace
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wholebatch.commands.edge import explain
from wholebatch.commands.folders import check_writable, name_new

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wholebatch.cost.recording import Recording

RECORDING, REPORT, TRACE = "recording.json", "report.html", "trace.json"
PIPED_WIDTH = 160
"""Columns where there is no terminal to ask: tables in a file or a pipe are not broken at 80."""


def prepare(out: Path | None, command: str, source: str = "") -> Path:
    """The folder that :func:`finish` will write to: ``out``, or ``costs/COMMAND-SOURCE-DATE``, before measuring.

    Nothing is left behind: an interrupted measurement leaves no empty folder.

    Args:
        out: as it was asked for.
        command: that measures.
        source: the table or the function that is measured, for the folder's name.

    Raises:
        ValueError: a recording stands there.
        OSError: the folder cannot be made or written to.
    """
    name = f"{command}-{Path(source).name.split('.')[0]}" if source else command
    folder = name_new("costs", name) if out is None else out
    for file in (RECORDING, REPORT, TRACE):
        if (folder / file).exists():
            raise ValueError(f"{folder} already holds a {file}; choose another --out, or move it away")
    check_writable(folder)
    return folder


def finish(recording: Recording, folder: Path, *, quiet: bool) -> None:
    """Show what was measured; write it, its page and, where there is one, its trace; print ``WHAT PATH`` for each.

    Args:
        recording: what was measured.
        folder: as :func:`prepare` gave it.
        quiet: show nothing but the paths.
    """
    from wholebatch.cost.console import tell
    from wholebatch.cost.page import write_page
    from wholebatch.cost.trace import has_trace, write_trace

    if not quiet:
        show(tell(recording))
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / RECORDING
    recording.save(kept)
    click.echo(f"recording {kept}")
    try:
        write_page(recording, folder / REPORT)
        click.echo(f"report {folder / REPORT}")
        if has_trace(recording):
            write_trace(recording, folder / TRACE)
            click.echo(f"trace {folder / TRACE}")
    except OSError as error:
        again = f"wholebatch report {shlex.quote(str(kept))} --out PAGE"
        raise click.ClickException(f"{explain(error)}; the recording is kept, make its page again: {again}") from error


def show(renderables: Iterable[RenderableType]) -> None:
    """Print what a section's ``console.tell`` gave, on stdout; names from outside are not taken for markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    for renderable in renderables:
        console.print(renderable)
