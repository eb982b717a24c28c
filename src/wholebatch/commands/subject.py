"""What commands share that train on a table without keeping the net: the options that name it, and the settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from wholebatch.commands.train import TASKS

if TYPE_CHECKING:
    from wholebatch import runs

OPTIONS = (
    click.option(
        "--target", multiple=True, metavar="COLUMN", help="What to predict; several times for several columns."
    ),
    click.option("--task", type=click.Choice(TASKS), default="auto", help="What kind of target it is."),
    click.option("--ignore", multiple=True, metavar="COLUMN", help="Leave a column out; several times for several."),
    click.option("--drop-missing-target", is_flag=True, help="Leave out rows whose target is missing."),
)

LEARNING_RATES = {"sgd": 3e-2, "adam": 3e-3, "adamw": 3e-3}
WEIGHT_DECAYS = {"sgd": 0.0, "adam": 0.0, "adamw": 1e-2}  # torch's own defaults

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


def plain_settings(table: str, learning_rate: float, **options: Any) -> runs.Settings:
    """A training without what would stand between two that are compared: dropout, smoothing, a schedule, an early end.

    Args:
        table: as it was named.
        learning_rate: of all of it.
        **options: of the command line, the target as it was given.

    Raises:
        click.UsageError: as :func:`find_target`.
    """
    from wholebatch import runs

    return runs.Settings(
        table=table,
        target=find_target(table, options.pop("target")),
        learning_rate=learning_rate,
        weight_decay=WEIGHT_DECAYS[options["optimizer"]],
        dropout=0.0,
        label_smoothing=0.0,
        schedule="constant",
        patience=None,
        **options,
    )
