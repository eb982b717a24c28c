"""The plan in sentences."""

from __future__ import annotations

from wholebatch.cost.digits import three_digits
from wholebatch.cost.plan.record import Forecast, Link, Plan, Synchronisation
from wholebatch.cost.plan.stretches import split

WHOSE: dict[Synchronisation, str] = {"all": "all workers", "groups": "groups", "none": "each worker alone"}
"""Whose moments batch norm takes."""
_MUCH = 0.15
"""Coefficient of variation: a rank with a core of its own varies by a few percent."""


def duration(microseconds: float) -> str:
    """Three digits and a unit: ``0.04 µs``, ``12.4 µs``, ``1.31 ms``, ``21.5 s``."""
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if microseconds >= 0.9995 * size:
            return f"{three_digits(microseconds / size)} {unit}"
    return f"{three_digits(microseconds)} µs"


def percent(value: float) -> str:
    """A whole number with its sign: ``+3 %``, ``-12 %``."""
    return f"{round(value):+d} %"


def link(link: Link) -> str:
    """Latency and bandwidth."""
    return f"{duration(link.latency_us)} and {link.megabytes_per_second:,.0f} MB/s ({link.source})"


def answers(record: Plan) -> list[str]:
    """What was found; the first sentence alone is a full answer."""
    whole, own = record.of("all")[-1], record.of("none")[-1]
    said = [_first(record, whole, own)]
    groups = record.of("groups")
    if groups:
        last = groups[-1]
        said.append(
            f"Over groups of {last.group} of {last.workers:,} workers it takes {duration(last.mean_us)}, "
            f"{duration(last.wait_us)} of it waiting."
        )
    if len(record.of("all")) > 1:
        first, alone = record.of("all")[0], record.of("none")[0]
        said.append(
            f"With {first.workers:,} {_workers(first.workers)} it takes {duration(first.mean_us)} over all of them, "
            f"and {duration(alone.mean_us)} over each alone."
        )
    if record.slow is not None:
        said.append(
            f"Worker {record.slow.worker} takes {record.slow.by:g} times as long as the others; who waits for it at "
            "every batch norm would otherwise wait for it at the sum of gradients."
        )
    if record.check is not None:
        said += _checked(record)
    return said


def _first(record: Plan, whole: Forecast, own: Forecast) -> str:
    workers = f"{whole.workers:,} {_workers(whole.workers)}"
    if whole.workers == 1:
        return f"One worker takes {duration(whole.mean_us)} a step, and waits for nobody."
    meetings = sum(bool(layer.forward_bytes) + bool(layer.backward_bytes) for layer in record.workload.layers)
    if not meetings:
        return f"No batch norm meets in this step; with {workers} it takes {duration(whole.mean_us)}."
    return (
        f"With batch norm over all of {workers} a step takes {duration(whole.mean_us)}, of which a worker waits "
        f"{duration(whole.wait_us)} ({100 * whole.wait_share:.1f} %) for slower ones and "
        f"{duration(whole.exchange_us)} are exchange; with batch norm over each worker alone it takes "
        f"{duration(own.mean_us)}: the {meetings} meetings "
        f"of batch norm make a step {whole.mean_us / own.mean_us:.2f} times as long."
    )


def _checked(record: Plan) -> list[str]:
    assert record.check is not None
    check, said = record.check, []
    for synchronisation in ("all", "none"):
        lines = [line for line in check.lines if line.synchronisation == synchronisation]
        if not lines:
            continue
        errors = ", ".join(f"{percent(line.error_percent)} with {line.workers}" for line in lines)
        told = ", ".join(percent(line.told_error_percent) for line in lines)
        over = "all ranks" if synchronisation == "all" else "each rank alone"
        said.append(
            f"Checked against real ranks on {check.cores} cores of this host, batch norm over {over}: the predicted "
            f"step is off by {errors} ranks; told what each rank computed in those steps, by {told}."
        )
    if check.slept:
        errors = ", ".join(
            f"{percent(line.error_percent)} with {line.workers}"
            for line in check.slept
            if line.synchronisation == "all"
        )
        said.append(
            "The waiting alone, of ranks that sleep random times in place of computing, and hardly need a core: off by "
            f"{errors} ranks."
        )
    return said


def notes(record: Plan) -> list[str]:
    """How it was predicted, and what is doubtful."""
    work, network = record.workload, record.network
    rows = (
        f"each worker keeps its {work.rows:,} rows, and the mini-batch grows with the workers (weak scaling)"
        if record.scaling == "weak"
        else f"the mini-batch of {work.whole_rows:,} rows is divided, and compute shrinks in proportion to rows "
        "(strong scaling); what a layer takes whatever its rows is not in that, so that many workers are slower than "
        "predicted"
    )
    jitter = (
        "as it did when it was measured"
        if record.jitter is None
        else f"with a coefficient of variation of {record.jitter:g}"
    )
    said = [
        f"One worker's step: {work.source}; {rows}.",
        *work.assumed,
        f"Compute between two meetings varies {jitter}: lognormal, independently between workers, stretches and steps. "
        "Disturbances that last longer than a stretch, or that all workers share, are not in the model.",
        "Batch norm meets once forward and once backward in each layer; a meeting ends when the last worker has come, "
        "and the exchange after it. The sum of gradients follows the last layer's backward, and does not overlap with "
        "it: frameworks that overlap it are faster with every kind of batch norm.",
        f"A message takes latency and bytes over bandwidth (Hockney): batch norm's {link(network.meetings)}, "
        f"gradients' {link(network.gradients)}. A sum over workers takes the cheapest of recursive doubling, "
        "halving-doubling and ring (Thakur, Rabenseifner and Gropp, 2005), without contention between messages.",
        _methods(record),
    ]
    if network.exchange == "allreduce" and record.gathering_us > 0:
        most, gathering = record.forecasts[-1].workers, duration(record.gathering_us)
        said.append(
            "Between hosts this library's layers gather all parts on every rank, for the same bits on each, in place "
            f"of summing them on the way: with {most:,} workers the exchange would take {gathering} a step (--exchange "
            "allgather plans for that)."
        )
    varied = max(stretch.spread for stretch in split(work, record.jitter))
    if record.jitter is None and varied > _MUCH:
        said.append(
            f"Compute was measured to vary by up to {100 * varied:.0f} %, which is much: was the machine busy with "
            "other things? With many workers the wait follows from that number: plan with --jitter for workers that "
            "have their cores to themselves."
        )
    if "measured" in (network.meetings.source, network.gradients.source) and network.exchange != "shared memory":
        said.append(
            "Latency and bandwidth that were not given are those of gloo over loopback between two ranks of this host: "
            "give those of your network."
        )
    if record.check is not None:
        said += _check_notes(record)
    return said


def _methods(record: Plan) -> str:
    simulated = [one for one in record.forecasts if one.method == "simulated"]
    closed = [one for one in record.forecasts if one.method == "closed form"]
    parts = []
    if simulated:
        most, steps = max(one.workers for one in simulated), simulated[0].steps
        worst = max((one.error_us / one.mean_us for one in simulated if one.mean_us), default=0.0)
        parts.append(
            f"up to {most:,} workers {steps:,} steps are simulated event by event (standard error of a mean: at most "
            f"{100 * worst:.2f} %)"
        )
    if closed:
        least = min(one.workers for one in closed)
        parts.append(
            f"from {least:,} workers the distribution of a step is found in closed form: a group's stretch is the "
            "largest of its workers' (distribution function to the power of the group), stretches are convolved, and "
            "the step is the largest over groups (David and Nagaraja, Order Statistics, 2003, section 2.1)"
        )
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _check_notes(record: Plan) -> list[str]:
    check = record.check
    assert check is not None
    said = [
        f"The check runs a net with hidden layers {', '.join(map(str, check.hidden))} and {check.rows:,} rows on each "
        f"rank, whatever is planned for, one thread each, over loopback ({check.network.exchange}: "
        f"{link(check.network.meetings)}; gradients by gloo: {link(check.network.gradients)}), not the planned one. "
        "A rank alone, steps with and steps without shared batch norm take turns. Latency and bandwidth were measured "
        "between two ranks: more ranks are predicted from that.",
        "A rank's compute is predicted as that of a rank alone. Ranks share caches, memory and power with each other, "
        "and cores with whatever else runs: the second prediction is told what each rank computed in each stretch of "
        "each step, so that its error is that of the exchanges alone.",
    ]
    if check.slept:
        said.append(
            "Ranks that sleep draw five stretches a step, lognormal with a mean of 10 ms and a coefficient of "
            "variation of 0.3, and meet as in batch norm."
        )
    others = max(line.others for line in check.lines)
    if others >= 0.5:
        said.append(
            f"Up to {others:.1f} threads of other processes wanted the {check.cores} cores, too: a rank that has no "
            "core lets all others wait. Check again on a quiet machine."
        )
    crowded = [line for line in check.lines if line.crowding > 1 and line.synchronisation == "all"]
    if crowded:
        factors = ", ".join(f"{line.workers} ranks × {line.crowding:.3g}" for line in crowded)
        said.append(
            f"There are more threads than the {check.cores} cores: compute is predicted as that of one rank times "
            f"threads over cores ({factors}), as if all took turns at every moment. The system gives whole time slices "
            "of milliseconds, and a rank that waits for its own delays all that meet it."
        )
    return said


def _workers(number: int) -> str:
    return "worker" if number == 1 else "workers"
