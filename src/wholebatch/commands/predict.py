"""``wholebatch predict``: a trained run's answer for each row of a table."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click

SUFFIXES = (".csv", ".parquet", ".pq")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("table")
@click.option("--out", required=True, metavar="FILE", help="Where to: .csv, .parquet, or - for CSV on stdout.")
def predict(run: Path, table: str, out: str) -> None:
    """Predict each row of TABLE with the model in RUN.

    Classes come with the probability of each, values in the units of the training table. TABLE's columns may stand in
    any order; the target need not be among them. FILE is written whole or not at all.
    """
    suffix = Path(out).suffix.lower()
    if out != "-" and suffix not in SUFFIXES:
        raise click.UsageError(f"--out {out} ends in no kind of file known here; end it in .csv or .parquet, or use -")
    from wholebatch.files import write
    from wholebatch.runs import Run
    from wholebatch.tables import read_table

    model = Run(run).read_model()
    predicted = model.predict(read_table(table, model.text_columns))
    content = io.BytesIO()
    if suffix in (".parquet", ".pq"):
        predicted.write_parquet(content)
    else:
        predicted.write_csv(content)
    if out == "-":
        sys.stdout.buffer.write(content.getvalue())
    else:
        write(Path(out), content.getvalue())
        click.echo(f"{predicted.height:,} rows predicted in {out}", err=True)
