"""``wholebatch train``: from a table to a run folder with a model and a report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wholebatch.commands import rank
from wholebatch.commands.asked import Asked
from wholebatch.commands.folders import name_new
from wholebatch.commands.options import Sizes

# The same names as in wholebatch.feedforward.settings, which is not imported for `--help`; a test compares them.
TASKS = ("auto", "classification", "regression", "multilabel")
NORMS = ("batch", "layer", "rms", "none")
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "identity")
LOSSES = ("auto", "cross_entropy", "mse", "huber", "bce")
OPTIMIZERS = ("sgd", "adam", "adamw")
SYNCS = ("all", "group", "none", "late")
PRECISIONS = ("highest", "high", "medium")
SCHEDULES = ("constant", "cosine", "linear", "one_cycle", "exponential")

AT_LEAST_1 = click.IntRange(min=1)
FRACTION = click.FloatRange(0, 1, max_open=True)


@click.command(context_settings={"show_default": True})
@click.argument("table", required=False)
@click.option("--target", multiple=True, metavar="COLUMN", help="What to predict; several times for several columns.")
@click.option("--task", type=click.Choice(TASKS), default="auto", help="What kind of target it is.")
@click.option("--ignore", multiple=True, metavar="COLUMN", help="Leave a column out; several times for several.")
@click.option("--weights-column", metavar="COLUMN", help="How much each row counts.")
@click.option("--drop-missing-target", is_flag=True, help="Leave out rows whose target is missing.")
@click.option("--hidden", type=Sizes(), default="256,256", help="Neurons of each hidden layer, or none.")
@click.option("--norm", type=click.Choice(NORMS), default="batch", help="What normalises each hidden layer.")
@click.option(
    "--norm-position", type=click.Choice(("before", "after")), default="before", help="Before or after the activation."
)
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="relu", help="Of the hidden layers.")
@click.option("--dropout", type=FRACTION, metavar="X", default=0.3, help="Share of hidden outputs dropped in training.")
@click.option("--loss", type=click.Choice(LOSSES), default="auto", help="What to minimise; auto: what fits the task.")
@click.option(
    "--label-smoothing",
    type=FRACTION,
    metavar="X",
    help="Share of the truth spread over all classes.  [default: 0.05, labels 0]",
)
@click.option("--class-weight", type=click.Choice(("balanced",)), help="Let rare classes count more.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", help="How the weights are moved.")
@click.option("--momentum", type=FRACTION, metavar="X", default=0.9, help="Of sgd; the others have none.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    default=3e-3,
    help="The highest of the schedule.",
)
@click.option("--schedule", type=click.Choice(SCHEDULES), default="cosine", help="How the learning rate changes.")
@click.option(
    "--weight-decay", type=click.FloatRange(0), metavar="X", default=1e-2, help="How strongly weights are drawn to 0."
)
@click.option("--clip", type=click.FloatRange(0, min_open=True), metavar="X", help="Bound on the gradient's norm.")
@click.option("--batch-size", type=AT_LEAST_1, metavar="N", default=32, help="Rows of a mini-batch.")
@click.option("--epochs", type=AT_LEAST_1, metavar="N", default=60, help="Times that every training row is seen.")
@click.option(
    "--validation-fraction", type=FRACTION, metavar="X", default=0.15, help="Rows to watch the training with."
)
@click.option("--test-fraction", type=FRACTION, metavar="X", default=0.0, help="Rows kept for a test at the end.")
@click.option(
    "--patience",
    type=click.IntRange(0),
    metavar="N",
    default=20,
    help="Epochs without progress to stop after; 0: never.",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", default=0, help="Of splits, first weights, shuffling and dropout."
)
@click.option("--threads", type=AT_LEAST_1, metavar="N", help="Example-threads; the result does not depend on them.")
@click.option("--split", type=click.Choice(("auto", "example", "neuron")), default="auto", help="How threads share.")
@click.option(
    "--engine",
    type=click.Choice(("auto", "native", "reference", "device")),
    default="auto",
    help="What does the arithmetic; device: what a GPU gets.",
)
@click.option("--device", metavar="NAME", default="cpu", help="Where it is done: cpu, cuda, or cuda:1 and so on.")
@click.option(
    "--matmul-precision",
    type=click.Choice(PRECISIONS),
    default="highest",
    help="What training multiplies: float32 numbers, sums of two bfloat16 numbers, or bfloat16 numbers.",
)
@click.option("--processes", type=AT_LEAST_1, metavar="N", help="Share every mini-batch among so many.  [default: 1]")
@click.option(
    "--shards",
    type=AT_LEAST_1,
    metavar="N",
    help="Parts of a mini-batch; the result depends on them, not on processes.  [default: as many as processes]",
)
@click.option(
    "--sync", type=click.Choice(SYNCS), default="all", help="Whose rows batch norm's statistics are of, in training."
)
@click.option("--group-size", type=AT_LEAST_1, metavar="N", help="Processes of a group.  [default: those of a host]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=300.0,
    help="How long a process waits for another.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The run folder.  [default: runs/TABLE-DATE]")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was stopped.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard events, too.")
@click.option("--quiet", is_flag=True, help="Show the result only.")
@click.pass_context
def train(ctx: click.Context, /, **options: Any) -> None:
    """Train a net on TABLE: a CSV or Parquet file, or digits, iris, wine, breast_cancer or diabetes.

    Numbers, categories, dates and missing values are prepared, and the preparation is kept with the model. The run
    folder gets the model, the settings, metrics of each epoch and report.html.

    With --resume, a run that was stopped goes on from its last epoch; TABLE and all settings are remembered.

    With --processes N, as under torchrun, every mini-batch is shared by N processes. If one fails, all start again from
    the last epoch.
    """
    processes = options.pop("processes")
    asked = _ask(ctx, processes, **options)
    if rank.is_rank():
        rank.run_as_rank(asked)
    elif (processes or 1) > 1:
        from wholebatch.commands.launching import launch

        launch(asked, processes or 1)
    else:
        from wholebatch.runs.ranks import Ranks

        asked.do(Ranks())


def ask(arguments: Sequence[str]) -> Asked:
    """What these arguments of the command ask for."""
    context = train.make_context("train", list(arguments))
    return _ask(context, **context.params)


def _ask(
    ctx: click.Context,
    /,
    processes: int | None,
    out: Path | None,
    resume: Path | None,
    tensorboard: bool,
    quiet: bool,
    timeout: float,
    **options: Any,
) -> Asked:
    started = rank.is_rank()
    if started and processes not in (None, rank.ranks_here()):
        raise click.UsageError(
            f"--processes is {processes}, but torchrun started {rank.ranks_here()}; leave --processes out"
        )
    if resume is not None and out is not None:
        raise click.UsageError("--out and --resume exclude each other: a resumed run stays in its folder")
    if resume is None:
        if options["table"] is None:
            raise click.UsageError("no table was named: wholebatch train TABLE --target COLUMN")
        if not options["target"]:
            raise click.UsageError("no target column was named: --target COLUMN")
        if options["validation_fraction"] == 0 and not _is_given(ctx, "patience"):
            options["patience"] = 0
        if started and out is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            raise click.UsageError("torchrun may start this again, and it must find its run then: name it with --out")
    return Asked(
        options,
        frozenset(name for name in options if _is_given(ctx, name)),
        resume or out or name_new("runs", Path(options["table"]).name.split(".")[0]),
        resume is not None,
        tensorboard,
        quiet,
        shlex.join(["wholebatch", *sys.argv[1:]]),
        timeout,
    )


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)
