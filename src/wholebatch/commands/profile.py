"""``wholebatch profile``: what the normalisation layers of a person's own training step cost."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command(context_settings={"show_default": True})
@click.argument("target", metavar="PACKAGE.MODULE:FUNCTION")
@click.option("--rounds", type=click.IntRange(min=6), metavar="N", help="Measured rounds.  [default: what fits]")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    default=20.0,
    help="How long to measure, where --rounds is not given; at least 6 rounds are.",
)
@click.option("--no-converting", is_flag=True, help="Do not measure what converting the batch norms would save.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder.  [default: costs/profile-NAME-DATE]")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def profile(
    target: str, rounds: int | None, seconds: float, no_converting: bool, out: Path | None, quiet: bool
) -> None:
    """Measure what each normalisation layer takes of a training step of yours, and what converting would save.

    The FUNCTION takes no arguments. Either it does one training step (forward, backward, optimizer), and is called
    again and again; or it sets everything up and returns a function that does one. For ranks:

        torchrun --nproc-per-node 2 -m wholebatch profile train:step

    Batch norms are converted for some of the steps and then put back.
    """
    from wholebatch.commands import costs
    from wholebatch.cost.profile.measuring import profile as measure
    from wholebatch.cost.profile.step import find_function
    from wholebatch.cost.recording import Recording, here

    name = target.partition(":")[2].rpartition(".")[2] or "step"
    folder = costs.prepare(out, "profile", name) if _is_first() else None
    function = find_function(target)
    measured = measure(
        function,
        target,
        rounds=rounds,
        seconds=seconds,
        converting=not no_converting,
        progress=_show if _is_first() and not quiet else lambda done, of: None,
    )
    if measured is None:
        return  # rank 0 tells
    folder = costs.prepare(None, "profile", name) if folder is None else folder
    costs.finish(Recording(origin=here(), profile=measured), folder, quiet=False)


def _is_first() -> bool:
    """Whether this is rank 0, or no rank; torchrun and its like say so before any group is open."""
    return os.environ.get("RANK", "0") == "0"


def _show(done: int, rounds: int) -> None:
    """One line that is written over, on a terminal only."""
    if sys.stderr.isatty():
        click.echo(f"\rround {done} of {rounds}" if done < rounds else "\r" + " " * 30 + "\r", nl=False, err=True)
