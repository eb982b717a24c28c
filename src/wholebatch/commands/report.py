"""``wholebatch report``: the page again, from the recording in the run folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to.  [default: report.html in RUN]")
def report(run: Path, out: Path | None) -> None:
    """Make RUN's report again from its recording (report.json); no table is needed."""
    from wholebatch.runs import Recording, Run, write_report

    folder = Run(run)
    folder.read_config()
    if not folder.recording.exists():
        raise click.ClickException(
            f"the run in {run} is not finished (it has no report.json); finish it: wholebatch train --resume {run}"
        )
    path = out or folder.report
    write_report(Recording.load(folder.recording), path)
    click.echo(f"report {path}")
