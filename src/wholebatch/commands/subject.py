"""The options that name a table and what of it counts, for commands that train on one without keeping the net."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wholebatch.commands.train import TASKS

OPTIONS = (
    click.option(
        "--target", multiple=True, metavar="COLUMN", help="What to predict; several times for several columns."
    ),
    click.option("--task", type=click.Choice(TASKS), default="auto", help="What kind of target it is."),
    click.option("--ignore", multiple=True, metavar="COLUMN", help="Leave a column out; several times for several."),
    click.option("--drop-missing-target", is_flag=True, help="Leave out rows whose target is missing."),
)

# What ``--quick`` means: fewer epochs and seeds, unless the person named theirs; and how steps are timed.
QUICK = {"epochs": 3, "seeds": 2}
QUICK_BESIDE = {"rounds": 7, "burst_seconds": 0.01, "timing_seconds": 3.0, "most_rows": 2000}


def shorten(ctx: click.Context, options: dict[str, Any]) -> None:
    """Take ``--quick`` out of the options, and put in what it means where it was given."""
    if options.pop("quick"):
        given = {name for name in QUICK if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
        options |= {name: value for name, value in QUICK.items() if name not in given} | QUICK_BESIDE


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
