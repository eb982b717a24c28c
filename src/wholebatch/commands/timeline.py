"""``wholebatch timeline``: one real step of the engine, thread by thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wholebatch.commands.edge import Interrupted
from wholebatch.commands.options import Sizes
from wholebatch.commands.quantities import Factor
from wholebatch.commands.subject import find_target, table_options
from wholebatch.commands.train import ACTIVATIONS, AT_LEAST_1, FRACTION, NORMS, OPTIMIZERS

if TYPE_CHECKING:
    from wholebatch.cost.timeline.problem import Wanted

RANDOM = "random"
MOST_STEPS, MOST_THREADS = 10_000, 256


@click.command(context_settings={"show_default": True})
@click.argument("table", default=RANDOM)
@table_options
@click.option("--features", type=AT_LEAST_1, metavar="N", default=64, help="Columns of random rows.")
@click.option("--classes", type=click.IntRange(min=2), metavar="N", default=10, help="Classes of random rows.")
@click.option("--hidden", type=Sizes(), default="256,256", help="Neurons of each hidden layer, or none.")
@click.option("--norm", type=click.Choice(NORMS), default="batch", help="What normalises each hidden layer.")
@click.option(
    "--norm-position", type=click.Choice(("before", "after")), default="before", help="Before or after the activation."
)
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="relu", help="Of the hidden layers.")
@click.option("--dropout", type=FRACTION, metavar="X", default=0.0, help="Share of hidden outputs dropped in training.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", help="How the weights are moved.")
@click.option("--clip", type=click.FloatRange(0, min_open=True), metavar="X", help="Bound on the gradient's norm.")
@click.option("--batch-size", type=AT_LEAST_1, metavar="N", default=512, help="Rows of a mini-batch.")
@click.option("--dtype", type=click.Choice(("float32", "float64")), default="float32", help="Of rows and net.")
@click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    metavar="N",
    help="Example-threads.  [default: as `train` chooses them]",
)
@click.option("--split", type=click.Choice(("auto", "example", "neuron")), default="auto", help="How threads share.")
@click.option("--steps", type=click.IntRange(1, MOST_STEPS), metavar="N", default=200, help="To record.")
@click.option(
    "--show", type=click.Choice(("median", "slowest")), default="median", help="The step to show, by its duration."
)
@click.option("--slow-thread", type=click.IntRange(0), metavar="N", help="Make this thread, from 0, a straggler.")
@click.option("--by", type=Factor(), metavar="Xx", help="How many times as long it computes.  [default: 3x]")
@click.option("--seed", type=click.IntRange(0), metavar="N", default=0, help="Of first weights, random rows, order.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder.  [default: costs/timeline-TABLE-DATE]")
@click.option("--quiet", is_flag=True, help="Write the files only.")
def timeline(table: str, out: Path | None, quiet: bool, **options: Any) -> None:
    """Record what each thread of the engine does in one real training step, on TABLE or on random rows.

    For each layer: what its threads compute, merge, and wait for at the meetings, who came last there, and how long the
    others waited for it. TABLE is a CSV or Parquet file (with --target), or digits, iris, wine, breast_cancer or
    diabetes. The folder gets the recording, a page with the picture, and a trace for Perfetto. What recording costs is
    measured and told.
    """
    from wholebatch.commands import costs

    wanted = _wanted(table, options)
    folder = costs.prepare(out, "timeline", table)

    from wholebatch.cost.recording import Recording, here
    from wholebatch.cost.timeline.measuring import measure

    try:
        record = measure(wanted, lambda line: None if quiet else click.echo(line, err=True))
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was written, since a timeline needs all of its steps") from None
    costs.finish(Recording(origin=here(), timeline=record), folder, quiet=quiet)


def _wanted(table: str, options: dict[str, Any]) -> Wanted:
    """The settings, checked."""
    from wholebatch import runs
    from wholebatch.cost.timeline.problem import Wanted
    from wholebatch.feedforward.recording import Delay

    target = options.pop("target")
    if table == RANDOM:
        if target:
            raise click.UsageError(f"random rows have no column {target[0]!r}: leave out --target, or name a table")
        target = ("class",)
    else:
        target = find_target(table, target)
    slow, factor = options.pop("slow_thread"), options.pop("by")
    if slow is None and factor is not None:
        raise click.UsageError("--by says how slow a thread is to be; name it: --slow-thread N")
    beside = {name: options.pop(name) for name in ("features", "classes", "steps", "dtype")}
    shown = options.pop("show")
    return Wanted(
        runs.Settings(table=table, target=target, label_smoothing=0.0, engine="native", **options),
        delay=None if slow is None else Delay(slow, factor or 3.0),
        shown=shown,
        **beside,
    )
