"""``wholebatch sync``: whose rows batch norm is over where ranks train one net, per step and in what is reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wholebatch.commands.edge import Interrupted
from wholebatch.commands.options import Names, Sizes
from wholebatch.commands.quantities import Factor
from wholebatch.commands.subject import LEARNING_RATES, plain_settings, shorten, table_options
from wholebatch.commands.train import ACTIVATIONS, AT_LEAST_1, FRACTION, OPTIMIZERS

if TYPE_CHECKING:
    from wholebatch.cost.synchronisation.settings import Wanted

# The same names as in wholebatch.feedforward.spread, which is not imported for `--help`; a test compares them.
CHOICES = ("all", "group", "none", "late")


@click.command(context_settings={"show_default": True})
@click.argument("table")
@table_options
@click.option("--processes", type=click.IntRange(min=2), metavar="N", default=2, help="Ranks of one thread each.")
@click.option(
    "--choices", type=Names(CHOICES), help="To measure.  [default: all,none,late; with groups where they divide]"
)
@click.option(
    "--group-size", type=click.IntRange(min=2), metavar="N", help="Ranks of a group.  [default: half of them]"
)
@click.option(
    "--straggler",
    type=Factor(),
    metavar="X",
    default="2x",
    help="Also with a rank that takes X times as long; 1: without.",
)
@click.option("--hidden", type=Sizes(), default="256,256", help="Neurons of each hidden layer.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="relu", help="Of the hidden layers.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", help="How the weights are moved.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Of every training.  [default: 0.003, sgd 0.03]",
)
@click.option("--batch-size", type=AT_LEAST_1, metavar="N", default=32, help="Rows of a mini-batch, of all ranks.")
@click.option("--epochs", type=AT_LEAST_1, metavar="N", default=10, help="Times that every training row is seen.")
@click.option("--seeds", type=AT_LEAST_1, metavar="N", default=5, help="Trainings of each choice.")
@click.option(
    "--validation-fraction", type=FRACTION, metavar="X", default=0.2, help="Rows to score the trainings with."
)
@click.option("--quick", is_flag=True, help="Fewer epochs, seeds and rounds, 2,000 rows.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder.  [default: costs/sync-TABLE-DATE]")
@click.option("--quiet", is_flag=True, help="Show the result only.")
@click.pass_context
def sync(ctx: click.Context, /, table: str, out: Path | None, quiet: bool, **options: Any) -> None:
    """Measure the choices of --sync on TABLE: a CSV or Parquet file, or digits, iris, wine, breast_cancer or diabetes.

    Ranks of this host train the same net with batch norm over all of them (all), over groups of them (group), over
    each alone (none), and over all, but with the others' moments of the step before (late): time per step, waiting and
    exchange, where no rank is held up, always the last, or now this one and now that; and the score after each epoch.
    --target may be left out for the sets named above.
    """
    from wholebatch.commands import costs

    shorten(ctx, options)
    wanted = _wanted(table, options)
    folder = costs.prepare(out, "sync", table)

    from wholebatch.commands.stages import Stages
    from wholebatch.cost.ranks import RankError
    from wholebatch.cost.recording import Recording, here
    from wholebatch.cost.synchronisation.measuring import synchronise

    try:
        with Stages(quiet) as stages:
            record = synchronise(wanted, stages)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was written, and the ranks were ended") from None
    except RankError as error:
        raise click.ClickException(str(error)) from error
    costs.finish(Recording(origin=here(), synchronisation=record), folder, quiet=quiet)


def _wanted(table: str, options: dict[str, Any]) -> Wanted:
    """The settings, checked."""
    from wholebatch.cost.synchronisation.settings import Wanted, default_choices

    beside = {name: options.pop(name) for name in tuple(options) if name in Wanted.__dataclass_fields__}
    beside["choices"] = beside["choices"] or default_choices(beside["processes"], beside["group_size"])
    learning_rate = options.pop("learning_rate") or LEARNING_RATES[options["optimizer"]]
    return Wanted(plain_settings(table, learning_rate, **options), **beside)
