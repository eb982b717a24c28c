"""``wholebatch compare``: the same net under several norms, per step and to a target, here and on torch eager."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wholebatch.commands.edge import Interrupted
from wholebatch.commands.options import Names, Numbers, Sizes
from wholebatch.commands.subject import LEARNING_RATES, plain_settings, shorten, table_options
from wholebatch.commands.train import ACTIVATIONS, AT_LEAST_1, FRACTION, OPTIMIZERS

if TYPE_CHECKING:
    from wholebatch.cost.comparison.settings import Wanted

# The same names as in wholebatch.cost.comparison, which is not imported for `--help`; a test compares them.
NORMS = ("batch", "batch-after", "layer", "rms", "none")
ENGINES = ("wholebatch", "torch")


@click.command(context_settings={"show_default": True})
@click.argument("table")
@table_options
@click.option("--norms", type=Names(NORMS), default=",".join(NORMS), help="To compare.")
@click.option("--engines", type=Names(ENGINES), default=",".join(ENGINES), help="To compare them on.")
@click.option("--hidden", type=Sizes(), default="256,256", help="Neurons of each hidden layer, or none.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="relu", help="Of the hidden layers.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", help="How the weights are moved.")
@click.option(
    "--learning-rates",
    type=Numbers(),
    metavar="X,...",
    help="One for all norms; of several, each norm gets its best.  [default: 0.003, sgd 0.03]",
)
@click.option("--batch-size", type=AT_LEAST_1, metavar="N", default=32, help="Rows of a mini-batch.")
@click.option("--epochs", type=AT_LEAST_1, metavar="N", default=10, help="Times that every training row is seen.")
@click.option("--seeds", type=AT_LEAST_1, metavar="N", default=5, help="Trainings of each norm on each engine.")
@click.option(
    "--target-score",
    type=click.FloatRange(max=1),
    metavar="X",
    help="Validation score to reach.  [default: what the weakest well-trained norm reaches]",
)
@click.option(
    "--evaluate-every",
    type=AT_LEAST_1,
    metavar="N",
    help="Steps between scores.  [default: about a hundredth of a training]",
)
@click.option(
    "--validation-fraction", type=FRACTION, metavar="X", default=0.2, help="Rows to score the trainings with."
)
@click.option(
    "--threads", type=AT_LEAST_1, metavar="N", help="To try beside 1; the faster is measured.  [default: all cores]"
)
@click.option("--quick", is_flag=True, help="Seconds in place of minutes: fewer epochs, seeds, rounds, 2,000 rows.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder.  [default: costs/compare-TABLE-DATE]")
@click.option("--quiet", is_flag=True, help="Show the result only.")
@click.pass_context
def compare(ctx: click.Context, /, table: str, out: Path | None, quiet: bool, **options: Any) -> None:
    """Compare norms on TABLE: a CSV or Parquet file, or digits, iris, wine, breast_cancer or diabetes.

    The same net is trained with batch norm (before and after the activation), layer norm, rms norm and none, on
    wholebatch's engine and on torch eager: time per step, steps and time to a target score. It checks the often-heard
    "3 to 5 times slower per step", and says what it found. --target may be left out for the sets named above.
    """
    from wholebatch.commands import costs

    shorten(ctx, options)
    wanted = _wanted(table, options)
    folder = costs.prepare(out, "compare", table)

    from wholebatch.commands.stages import Stages
    from wholebatch.cost.comparison.measuring import compare as measure
    from wholebatch.cost.recording import Recording, here

    try:
        with Stages(quiet) as stages:
            record = measure(wanted, stages)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was written, since a comparison needs all of its contenders") from None
    costs.finish(Recording(origin=here(), comparison=record), folder, quiet=quiet)


def _wanted(table: str, options: dict[str, Any]) -> Wanted:
    """The settings, checked."""
    from wholebatch.cost.comparison.settings import Wanted
    from wholebatch.feedforward.threads import usable_cores

    beside = {name: options.pop(name) for name in tuple(options) if name in Wanted.__dataclass_fields__}
    beside["threads"] = beside["threads"] or usable_cores()
    beside["learning_rates"] = beside["learning_rates"] or (LEARNING_RATES[options["optimizer"]],)
    return Wanted(plain_settings(table, beside["learning_rates"][0], **options), **beside)
