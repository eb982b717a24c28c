"""What the study found, as a table: each way at its own best learning rate, with the spread over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.sheet import Sheet
from benchmarks.study_cases import WAYS, Way
from benchmarks.study_runs import Run, chosen_runs

COLUMNS = (
    "way",
    "memory",
    "rate",
    "test accuracy",
    "from–to",
    "test loss",
    "train loss",
    "ms a step",
    "against undivided",
)


def sheet_of(net: str, runs: Sequence[Run]) -> Sheet:
    """One line a way: what it ends with, and the difference of its test accuracies to the undivided, seed by seed."""
    sheet = Sheet(f"{net}: at the end of training", COLUMNS, words=2)
    undivided = {run["seed"]: run for run in chosen_runs(runs, net, "undivided")}
    for way in WAYS.values():
        chosen = chosen_runs(runs, net, way.name)
        if not chosen:
            continue
        ends = [run["test_accuracy"][-1] for run in chosen]
        others = [undivided[run["seed"]]["test_accuracy"][-1] for run in chosen if run["seed"] in undivided]
        sheet.rows.append(
            (
                way.name,
                f"{way.micro} examples",
                f"{chosen[0]['rate']:g}",
                percent(ends),
                f"{min(ends):.1%}–{max(ends):.1%}",
                _mean([run["test_loss"][-1] for run in chosen]),
                _mean([run["loss"][-1] for run in chosen]),
                f"{statistics.median(1e3 * run['seconds'][-1] / run['steps'][-1] for run in chosen):.1f}",
                _against(ends, others),
            )
        )
    seeds = len(undivided) or max((run["seed"] for run in runs), default=0) + 1
    sheet.caption = f"Means ± standard deviations over {seeds} seeds. {_distance(net, runs)}".strip()
    return sheet


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation (of a sample) of shares."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread} %"


def _against(ends: Sequence[float], others: Sequence[float]) -> str:
    """Points of a hundred."""
    if len(others) != len(ends):
        return ""
    differences = [100 * (a - b) for a, b in zip(ends, others, strict=True)]
    spread = f" ± {statistics.stdev(differences):.1f}" if len(differences) > 1 else ""
    return f"{statistics.fmean(differences):+.1f}{spread}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f}" if len(known) == len(values) else "not finite"


def _distance(net: str, runs: Sequence[Run]) -> str:
    """How far lockstep comes from the undivided net in float32: rounding that training makes larger."""
    by_key = {(run["net"], run["way"], run["rate"], run["seed"]): run for run in runs}
    pairs = [
        (by_key[found_net, "undivided", rate, seed], run)
        for (found_net, way, rate, seed), run in by_key.items()
        if (found_net, way) == (net, "lockstep") and (found_net, "undivided", rate, seed) in by_key
    ]
    if not pairs:
        return ""
    first = [abs(a["loss"][1] - b["loss"][1]) for a, b in pairs if None not in (a["loss"][1], b["loss"][1])]
    last = [abs(a["loss"][-1] - b["loss"][-1]) for a, b in pairs if None not in (a["loss"][-1], b["loss"][-1])]
    return (
        f"Lockstep's training loss and the undivided net's, all seeds and rates: at most {max(first, default=0):.1e} "
        f"apart in the first epoch, {max(last, default=0):.1e} in the last."
    )


def label(way: Way) -> str:
    """For a figure's legend."""
    order = ", sorted by class" if way.sorted else ""
    kind = {"undivided": "undivided batch", "group": "group norm"}.get(way.name)
    if kind is None:
        kind = f"lockstep, {way.micro} at a time" if way.exact else f"plain accumulation, {way.micro} at a time"
    return kind + order
