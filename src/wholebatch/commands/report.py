"""``wholebatch report``: the page again, from a run's recording or from one of costs, wherever it was made."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [default: report.html beside the recording]")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Write a trace for Perfetto, too.")
@click.option("--console", is_flag=True, help="Print the tables.")
def report(path: Path, out: Path | None, trace: Path | None, console: bool) -> None:
    """Make the report of PATH again: a run folder, or a recording of costs (the file, or its folder).

    Everything comes from the recording (report.json of a run, recording.json of costs), so this works on another
    machine, and no table is needed. With --console or --trace and without --out, no page is written.
    """
    page_wanted = out is not None or not (console or trace)
    recording = _find_costs(path)
    if recording is None:
        if trace is not None:
            raise click.UsageError(f"{path} is a run of training, which has no trace; leave out --trace")
        _report_run(path, out, page_wanted, console)
    else:
        _report_costs(recording, out, page_wanted, trace, console)


def _find_costs(path: Path) -> Path | None:
    """The recording of costs in ``path``, or None where a run is meant."""
    from wholebatch.commands.costs import RECORDING

    if path.is_dir():
        found = path / RECORDING
        return found if found.exists() else None
    return path if path.exists() and not _is_run(path) else None


def _is_run(file: Path) -> bool:
    """Whether ``file`` is the report.json of a run; all else is left to those who read recordings of costs."""
    from wholebatch.runs.recording import FORMAT

    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def _report_costs(file: Path, out: Path | None, page_wanted: bool, trace: Path | None, console: bool) -> None:
    from wholebatch.commands.costs import REPORT, show
    from wholebatch.cost.console import tell
    from wholebatch.cost.page import write_page
    from wholebatch.cost.recording import load
    from wholebatch.cost.trace import write_trace

    recording = load(file)
    if console:
        show(tell(recording))
    if trace is not None:  # first: a recording without a course in time is refused before a page is written
        write_trace(recording, trace)
        click.echo(f"trace {trace}")
    if page_wanted:
        page = out or file.with_name(REPORT)
        write_page(recording, page)
        click.echo(f"report {page}")


def _report_run(path: Path, out: Path | None, page_wanted: bool, console: bool) -> None:
    from wholebatch.commands.progress import show_scores
    from wholebatch.runs import Recording, Run, write_report
    from wholebatch.runs.names import REPORT

    file = path
    if not path.is_file():
        folder = Run(path)
        folder.read_config()
        file = folder.recording
        if not file.exists():
            raise click.ClickException(
                f"the run in {path} is not finished (it has no report.json); "
                f"finish it: wholebatch train --resume {path}"
            )
    recording = Recording.load(file)
    if console:
        show_scores(recording)
    if page_wanted:
        page = out or file.with_name(REPORT)
        write_report(recording, page)
        click.echo(f"report {page}")
