"""From raw steps to the profile: medians, spreads, shares, and differences of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import quantile_test

from wholebatch.cost.digits import middle
from wholebatch.cost.profile.change import Change
from wholebatch.cost.profile.meetings import Shares, have_met, split
from wholebatch.cost.profile.norms import Norm
from wholebatch.cost.profile.probes import Visit
from wholebatch.cost.profile.record import Conversion, Estimate, Layer, Profile, Rank, Spread, Times
from wholebatch.cost.profile.samples import Samples, Trace

CLEARLY = 2.0  # times as long as for any other rank has to be waited for the one that is called the slowest
LEAST_PAIRS = 6  # fewer have no 95 % interval: 2 * (1/2)^5 is above 5 %


def spread(values: Any) -> Spread:
    """Median, p20 and p80 of at least one value."""
    low, median, high = middle(values)
    return Spread(median=median, low=low, high=high)


def estimate(differences: Any) -> Estimate | None:
    """The median of relative differences and its interval; None where there are too few."""
    values = np.asarray(differences, dtype=float)
    if len(values) < LEAST_PAIRS:
        return None
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    return Estimate(
        median=float(np.median(values)), low=float(interval.low), high=float(interval.high), pairs=len(values)
    )


def summarise(
    target: str,
    models: Sequence[str],
    device: str,
    norms: Sequence[Norm],
    visits: Sequence[Visit],
    samples: Sequence[Samples],
    change: Change | None,
    notes: Sequence[str],
) -> Profile:
    """The profile, from what each rank measured; ``samples`` are in rank order, and the rest is of rank 0."""
    own, notes = samples[0], list(notes)
    shares: Shares | None = None
    if have_met(samples):
        try:
            shares = split(samples, len(norms))
        except ValueError as error:
            notes.append(f"Waiting is not told apart from exchanging: {error}.")
    ranks = [_rank(number, one, shares) for number, one in enumerate(samples)]
    waited = np.zeros(len(samples)) if shares is None else shares.caused.sum(axis=1)
    layers = [
        _layer(norm, visit, own, place, change) for place, (norm, visit) in enumerate(zip(norms, visits, strict=True))
    ]
    return Profile(
        target=target,
        models=list(models),
        device=device,
        threads=torch.get_num_threads(),
        rounds=len(own.probed.seconds) // own.burst,
        burst=own.burst,
        step=spread(own.plain),
        share=spread(sum((_shares_of_step(own.probed, place) for place in range(len(norms))), start=np.zeros(1))),
        overhead=estimate(_compare(own.plain, own.probed.seconds, own.burst)),
        layers=layers,
        ranks=ranks,
        slowest=_slowest(waited),
        conversion=None if change is None else _conversion(samples, change),
        notes=notes,
    )


def _slowest(waited: np.ndarray) -> int | None:
    """The rank that was waited for by far the longest; None where ranks wait for each other by turns."""
    order = np.argsort(waited)
    if len(order) < 2 or waited[order[-1]] <= CLEARLY * waited[order[-2]]:
        return None
    return int(order[-1])


def _rank(number: int, samples: Samples, shares: Shares | None) -> Rank:
    times = []
    for place in range(len(samples.probed.forward[0])):
        met = shares is not None and bool(shares.met[number, place])
        wait = spread(shares.wait[number, :, place]) if met and shares is not None else None
        exchange = spread(shares.exchange[number, :, place]) if met and shares is not None else None
        times.append(_times(samples.probed, place).model_copy(update={"wait": wait, "exchange": exchange}))
    step = spread(samples.plain)
    if shares is None or not shares.meetings[number]:
        meetings = sum(map(len, samples.probed.stays))
        return Rank(
            rank=number,
            host=samples.host,
            step=step,
            layers=times,
            meetings=round(meetings / len(samples.probed.stays)),
        )
    return Rank(
        rank=number,
        host=samples.host,
        step=step,
        layers=times,
        wait=spread(shares.wait_of_all[number]),
        exchange=spread(shares.exchange_of_all[number]),
        meetings=round(shares.meetings[number] / shares.wait.shape[1]),
        last=int(shares.last[number]),
        caused=spread(shares.caused[number]),
    )


def _layer(norm: Norm, visit: Visit, samples: Samples, place: int, change: Change | None) -> Layer:
    changed = change is not None and norm in change.layers
    return Layer(
        name=norm.name,
        kind=norm.kind,
        shape=visit.shape,
        dtype=visit.dtype,
        calls=visit.calls,
        forward_bytes=visit.forward_bytes,
        backward_bytes=visit.backward_bytes,
        share=spread(_shares_of_step(samples.probed, place)),
        converted=_times(samples.changed_probed, place) if changed else None,
    )


def _times(trace: Trace, place: int) -> Times:
    forward = [step[place] for step in trace.forward]
    backward = [seconds for step in trace.backward if (seconds := step[place]) is not None]
    missing = [0.0] * (len(forward) - len(backward))  # steps in which no derivative passed
    return Times(forward=spread(forward), backward=spread([*backward, *missing]) if backward else None)


def _shares_of_step(trace: Trace, place: int) -> np.ndarray:
    """Forward and backward of a layer over the whole step: the same one, so that what disturbs one disturbs both."""
    both = [f[place] + (b[place] or 0.0) for f, b in zip(trace.forward, trace.backward, strict=True)]
    return np.divide(both, trace.seconds)


def _compare(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, burst: int) -> np.ndarray:
    """How much longer the steps of the second of each pair of bursts took, relative to the first."""
    pairs = min(len(before), len(after)) // burst
    first, second = (np.reshape(each[: pairs * burst], (pairs, burst)).mean(axis=1) for each in (before, after))
    return np.asarray(second / first - 1)


def _conversion(samples: Sequence[Samples], change: Change) -> Conversion | None:
    """Of the slowest rank in each step: one that no longer waits for the others would seem to save their time."""
    before, after = (np.max([getattr(one, form) for one in samples], axis=0) for form in ("plain", "changed"))
    saving = estimate(-_compare(before, after, samples[0].burst))
    if saving is None:
        return None
    return Conversion(
        way=change.way,
        layers=[norm.name for norm in change.layers],
        before=spread(before),
        after=spread(after),
        saving=saving,
    )
