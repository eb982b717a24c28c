"""The options that name a table and what of it counts, for commands that train on one without keeping the net."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from wholebatch.commands.train import TASKS

OPTIONS = (
    click.option(
        "--target", multiple=True, metavar="COLUMN", help="What to predict; several times for several columns."
    ),
    click.option("--task", type=click.Choice(TASKS), default="auto", help="What kind of target it is."),
    click.option("--ignore", multiple=True, metavar="COLUMN", help="Leave a column out; several times for several."),
    click.option("--drop-missing-target", is_flag=True, help="Leave out rows whose target is missing."),
)


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command with ``--target``, ``--task``, ``--ignore`` and ``--drop-missing-target``."""
    return reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)


def find_target(table: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """The target columns: those that were named, or a bundled set's own.

    Raises:
        click.UsageError: none was named, and ``table`` is a file.
    """
    from wholebatch.tables.bundled import BUNDLED

    if given:
        return given
    if table not in BUNDLED or Path(table).exists():
        raise click.UsageError("no target column was named: --target COLUMN")
    return (BUNDLED[table][0],)
