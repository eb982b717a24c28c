"""``wholebatch plan``: what a step would take with more workers, and how well that is predicted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wholebatch.commands.edge import Interrupted
from wholebatch.commands.options import Sizes
from wholebatch.commands.quantities import Bandwidth, Duration, Factor, Jitter, Workers

if TYPE_CHECKING:
    from wholebatch.commands.stages import Stages
    from wholebatch.cost.plan.record import Link, Network, Plan, Workload
    from wholebatch.cost.plan.trial import Shape

AT_LEAST_1 = click.IntRange(min=1)
SLOWER = 3.0


@click.command(context_settings={"show_default": True})
@click.option("--workers", type=Workers(), metavar="N..M", default="2..4096", help="How many; 2..4096 doubles, or 2,6.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="RECORDING",
    help="Plan for what was profiled or drawn there.  [default: a net of --hidden is measured]",
)
@click.option("--hidden", type=Sizes(), default="256,256", help="Neurons of each hidden layer of the measured net.")
@click.option("--batch-size", type=click.IntRange(min=2), metavar="N", default=256, help="Rows of one worker.")
@click.option("--parameters", type=click.IntRange(0), metavar="N", help="Whose gradients are summed, if not the net's.")
@click.option("--latency", type=Duration(), metavar="TIME", help="Of a message: 5us.  [default: loopback, measured]")
@click.option("--bandwidth", type=Bandwidth(), metavar="SPEED", help="10Gbit/s, 1.25GB/s.  [default: likewise]")
@click.option(
    "--exchange",
    type=click.Choice(("allreduce", "allgather")),
    default="allreduce",
    help="How batch norm's vectors get to all.",
)
@click.option(
    "--jitter", type=Jitter(), metavar="X", help="Compute varies by this share, 0.05 or 5%.  [default: as measured]"
)
@click.option("--group-size", type=AT_LEAST_1, metavar="N", help="Workers of a group.  [default: 8, where it divides]")
@click.option("--strong", is_flag=True, help="Divide the mini-batch; otherwise each worker keeps its rows.")
@click.option("--slow-worker", type=click.IntRange(0), metavar="N", help="Worker N, from 0, is slower.")
@click.option("--by", type=Factor(), metavar="X", help="How many times slower.  [default: 3x]")
@click.option("--check", type=Workers(2, 64), metavar="N,...", default="2,4,8", help="Check with so many local ranks.")
@click.option("--no-check", is_flag=True, help="Predict only.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), metavar="X", default=2.0, help="How long to measure each thing for."
)
@click.option("--seed", type=click.IntRange(0), metavar="N", default=0, help="Of the simulation.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder.  [default: costs/plan-DATE]")
@click.option("--quiet", is_flag=True, help="Show the result only.")
def plan(
    workers: tuple[int, ...],
    source: Path | None,
    hidden: tuple[int, ...],
    batch_size: int,
    parameters: int | None,
    latency: float | None,
    bandwidth: float | None,
    exchange: str,
    jitter: float | None,
    group_size: int | None,
    strong: bool,
    slow_worker: int | None,
    by: float | None,
    check: tuple[int, ...],
    no_check: bool,
    seconds: float,
    seed: int,
    out: Path | None,
    quiet: bool,
) -> None:
    """Predict a step, and the wait in it, with more workers than there are here.

    Batch norm over all workers, over groups of them, and over each alone; by simulation, and in closed form for many
    workers. The predictions for a few ranks are checked against real ranks of this host, and their errors are printed.
    """
    if not hidden:
        raise click.UsageError("--hidden needs at least one layer: a net without batch norm has no meetings")
    if by is not None and slow_worker is None:
        raise click.UsageError("--by says how slow a worker is, and no worker is slow: name one with --slow-worker")
    from wholebatch.commands import costs

    folder = costs.prepare(out, "plan")
    workload = None if source is None else _read(source)

    from wholebatch.commands.stages import Stages
    from wholebatch.cost.plan.forecast import check_request
    from wholebatch.cost.plan.forecast import plan as forecast
    from wholebatch.cost.plan.record import Slow
    from wholebatch.cost.plan.trial import Shape
    from wholebatch.cost.ranks import RankError
    from wholebatch.cost.recording import Recording, here

    slow = None if slow_worker is None else Slow(worker=slow_worker, by=SLOWER if by is None else by)
    shape = Shape(hidden, batch_size)
    rows = batch_size if workload is None else workload.whole_rows
    check_request(workers, rows, slow=slow, strong=strong, group_size=group_size)
    try:
        with Stages(quiet) as stages:
            if workload is None:
                workload = _measure(shape, seconds, stages)
            if parameters is not None:
                workload = workload.model_copy(update={"gradient_bytes": 4 * parameters})
            local, usual = None, None
            if not no_check or latency is None or bandwidth is None:
                local, usual = _connect(shape, seconds, stages)
            network = _network(usual, latency, bandwidth, exchange)
            stages(f"plan: {len(workers)} numbers of workers", 0.0)
            record = forecast(
                workload,
                network,
                workers,
                jitter=jitter,
                slow=slow,
                strong=strong,
                group_size=group_size,
                seed=seed,
                progress=lambda share: stages(f"plan: {len(workers)} numbers of workers", share),
            )
            if not no_check and local is not None:
                record = _check(record, shape, check, local, seconds, stages)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was written, and the ranks were ended") from None
    except RankError as error:
        raise click.ClickException(f"{error}; plan without local ranks: --no-check, --latency, --bandwidth") from error
    costs.finish(Recording(origin=here(), plan=record), folder, quiet=quiet)


def _read(source: Path) -> Workload:
    """One worker's step, from a recording."""
    from wholebatch.cost.plan.adapters import from_profile, from_timeline
    from wholebatch.cost.recording import load

    recording = load(source / "recording.json" if source.is_dir() else source)
    if recording.timeline is not None:
        return from_timeline(recording.timeline)
    if recording.profile is not None:
        return from_profile(recording.profile)
    raise ValueError(
        f"{source} holds neither a profile nor a timeline to plan from; make one: wholebatch profile, or wholebatch "
        "timeline"
    )


def _measure(shape: Shape, seconds: float, stages: Stages) -> Workload:
    from wholebatch.cost.plan.host import measure_workload

    stages("measure: one rank's step", 0.0)
    return measure_workload(shape, seconds)


def _connect(shape: Shape, seconds: float, stages: Stages) -> tuple[Network, Link]:
    from wholebatch.cost.plan.host import measure_network

    stages("measure: messages between two ranks", 0.0)
    return measure_network(shape.gradient_bytes, seconds)


def _network(usual: Link | None, latency: float | None, bandwidth: float | None, exchange: str) -> Network:
    """Between the planned workers: what was given, and for the rest gloo over loopback."""
    from wholebatch.cost.plan.record import Link, Network

    values: dict[str, object] = {}
    if usual is not None:
        values = usual.model_dump()
    if latency is not None:
        values |= {"latency_us": latency, "source": "partly given"}
    if bandwidth is not None:
        values |= {"megabytes_per_second": bandwidth, "source": "partly given"}
    if latency is not None and bandwidth is not None:
        values["source"] = "given"
    link = Link.model_validate(values)
    return Network.model_validate({"meetings": link, "gradients": link, "exchange": exchange})


def _check(record: Plan, shape: Shape, ranks: tuple[int, ...], local: Network, seconds: float, stages: Stages) -> Plan:
    from wholebatch.cost.plan.check import check
    from wholebatch.feedforward.threads import usable_cores

    checked = check(shape, ranks, local, usable_cores(), seconds, lambda stage: stages(stage, 0.0))
    return record.model_copy(update={"check": checked})
