"""``python -m benchmarks fit``: whole fits, ours and the peers', interleaved in one run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.fit_runs import Fitter, rows_of, run_all
from benchmarks.fit_systems import NORMS, PEERS, norms_of
from benchmarks.fit_tables import RECIPES, FitTable, Recipe, make_table
from benchmarks.options import Names, OutFile, Threads, default_threads
from benchmarks.sheet import Sheet
from wholebatch import files
from wholebatch.commands.options import Sizes

DTYPES = ("float32", "float64")
TIMES = ("system", "norm", "threads", "seconds", "from-to", "against sklearn")
COLUMNS = (*TIMES, "test score", "to sklearn's score", "peak MB (of table)")


@click.command()
@click.option("--tables", type=Names("table", tuple(RECIPES)), default=",".join(RECIPES), show_default=True)
@click.option("--dtypes", type=Names("dtype", DTYPES), default=",".join(DTYPES), show_default=True)
@click.option(
    "--threads",
    type=Threads(),
    default=default_threads,
    help="Of the peers, each number on its own; wholebatch has the cores of the largest.  [default: 1,2]",
)
@click.option(
    "--peers",
    type=Names("peer", PEERS, may_be_none=True),
    default="sklearn,torch",
    show_default=True,
    help="sklearn, torch, compile (torch.compile), or 'none'.",
)
@click.option("--norms", type=Names("norm", NORMS), default=",".join(NORMS), show_default=True)
@click.option("--hidden", type=Sizes(), help="Neurons of each hidden layer, in place of the table's own.")
@click.option("--batch-size", type=click.IntRange(2), help="Rows of a mini-batch, in place of the table's own.")
@click.option("--epochs", type=click.IntRange(1), help="In place of the table's own.")
@click.option("--rows", type=click.IntRange(100), help="Use so many rows of each table only.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds, each with its own seed.")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write the tables to this file.")
def fit(
    tables: tuple[str, ...],
    dtypes: tuple[str, ...],
    threads: tuple[int, ...],
    peers: tuple[str, ...],
    norms: tuple[str, ...],
    hidden: tuple[int, ...] | None,
    batch_size: int | None,
    epochs: int | None,
    rows: int | None,
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time whole fits: the same net, mini-batches, Adam and number of epochs for every system.

    Each fit has a process of its own, on the same cores, one after the other in a new order every round. Peak memory is
    what a fit takes beside the table; the target of "to sklearn's score" is the test score that scikit-learn's net ends
    with.
    """
    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=140)  # a file need not break its lines

    def say(sentence: str) -> None:
        errors.print(f"note: {sentence}", highlight=False, markup=False, soft_wrap=True)

    most = max(threads)
    fitters = [Fitter("wholebatch", norm, most) for norm in norms]
    fitters += [Fitter(peer, norm, count) for peer in peers for norm, count in product(norms_of(peer, norms), threads)]
    found: list[dict[str, Any]] = []
    sheets: list[Sheet] = []
    for name, dtype in product(tables, dtypes):
        table, recipe = make_table(name, dtype, rows), _recipe(name, hidden, batch_size, epochs)
        with tempfile.TemporaryDirectory() as folder:
            outcomes = run_all(table, Path(folder), recipe, fitters, repeats, say)
        if not any(outcomes.values()):
            raise click.ClickException(f"no system could fit the table {name}; the notes above say why")
        rows_found = rows_of(name, table, recipe, outcomes)
        sheet = Sheet(_title(name, table, recipe, repeats), COLUMNS, 2, _lines(rows_found))
        console.print(sheet.to_rich())
        sheets.append(sheet)
        found += rows_found
    if json_path is not None:
        files.write_json(json_path, found)
    if markdown is not None:
        files.write(markdown, "\n".join(sheet.to_markdown() for sheet in sheets))


def _recipe(name: str, hidden: tuple[int, ...] | None, batch: int | None, epochs: int | None) -> Recipe:
    given = {"hidden": hidden, "batch": batch, "epochs": epochs}
    return replace(RECIPES[name], **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


def _title(name: str, table: FitTable, recipe: Recipe, repeats: int) -> str:
    hidden = "-".join(map(str, recipe.hidden))
    return (
        f"{name}: {len(table.y):,} x {table.x.shape[1]} {table.x.dtype} ({table.x.nbytes / 1e6:.1f} MB), "
        f"hidden {hidden}, mini-batches of {recipe.batch}, {recipe.epochs} epochs, {repeats} seeds"
    )


def _lines(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows as text, in the order of the norm and then of the seconds."""
    peer = min((row["seconds"] for row in rows if row["system"] == "sklearn"), default=None)
    lines: list[tuple[str, ...]] = []
    for row in sorted(rows, key=lambda row: (NORMS.index(row["norm"]), row["seconds"])):
        if row["target"] is None:
            target = "-"
        elif row["target_seconds"] is None:
            target = f"{row['target_reached']} of {row['repeats']} reached it"
        else:
            target = f"{row['target_seconds']:.3g} s (epoch {row['target_epoch']:g})"
        peak = row["peak_bytes"]
        lines.append(
            (
                row["system"],
                row["norm"],
                str(row["threads"]),
                f"{row['seconds']:.3g}",
                f"{row['seconds_lowest']:.3g}-{row['seconds_highest']:.3g}",
                "-" if peer is None else f"{peer / row['seconds']:.2f}x",
                f"{row['score']:.4f} ± {row['score_std']:.4f}",
                target,
                "-" if peak is None else f"{peak / 1e6:.1f} ({peak / row['table_bytes']:.2f})",
            )
        )
    return lines
