"""One worker's step from what another measurement recorded.

What a recording does not tell is assumed, and each assumption is a sentence in ``Workload.assumed``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from wholebatch.cost.plan.measuring import meeting_bytes
from wholebatch.cost.plan.record import Layer, Workload
from wholebatch.cost.profile.record import Profile
from wholebatch.cost.timeline.record import Timeline

_TAIL_SCORE = 0.8416
"""The standard normal's 80th percentile: what lies between p20 and p80 is twice that many standard deviations."""


def from_timeline(record: Timeline) -> Workload:
    """A thread of the engine as a worker: the mean over threads of what each computed in the step of median length.

    A layer's weight gradient and update count as its backward compute; a straggler that was injected is left out.
    """
    settings, step = record.settings, record.median
    ordinary = [
        thread for thread in range(settings.threads) if record.straggler is None or record.straggler.thread != thread
    ] or list(range(settings.threads))
    names: dict[int, str] = {}
    computed: dict[tuple[int, bool], list[int]] = defaultdict(lambda: [0] * settings.threads)
    last = len(settings.sizes) - 2  # the output layer's
    for span in step.spans:
        if span.kind in ("compute", "merge"):
            layer = last if span.layer is None else span.layer
            forward = span.phase in ("forward", "loss")
            computed[layer, forward][span.thread] += span.duration_ns
            names.setdefault(layer, span.name)

    pieces = [
        [np.array(computed[place, forward])[ordinary] / 1e3 for forward in (True, False)] for place in range(last + 1)
    ]
    assumed = [
        "Threads of a timeline are taken for workers with the same rows; its weight gradients and updates for part of "
        "the layers' backward pass, before the sum of gradients."
    ]
    every = [piece for pair in pieces for piece in pair]
    squares = sum(piece.mean() ** 2 for piece in every)
    if len(ordinary) > 1 and squares > 0:
        # One step has one time for each thread and piece: too few for a spread of each, so that they are pooled.
        spread = math.sqrt(sum(piece.var(ddof=1) for piece in every) / squares)
        assumed.append(
            f"Compute varies between threads by {100 * spread:.1f} % within the timeline's median step, pooled."
        )
    else:
        spread = _share_out(_spread(record.step_ns.p20, record.step_ns.p80), [float(piece.mean()) for piece in every])
        assumed.append("Compute varies so that a step varies as the recorded steps of one thread did.")
    if settings.split == "neuron":
        assumed.append("The threads split the layers by neuron; workers are planned with as much compute by example.")
    met = settings.norm == "batch"
    layers = [
        Layer(
            name=names.get(place, f"layer {place + 1}"),
            forward_us=float(forward.mean()),
            backward_us=float(backward.mean()),
            forward_spread=spread,
            backward_spread=spread,
            forward_bytes=meeting_bytes(settings.sizes[place + 1]) if met and place < last else 0,
            backward_bytes=meeting_bytes(settings.sizes[place + 1]) if met and place < last else 0,
        )
        for place, (forward, backward) in enumerate(pieces)
    ]
    sizes = "-".join(map(str, settings.sizes))
    return Workload(
        source=f"a thread of {settings.threads} of a recorded timeline, net {sizes}, batch {settings.batch_size}",
        assumed=assumed,
        rows=max(1, settings.batch_size // settings.threads),
        whole_rows=max(1, settings.batch_size),
        layers=layers,
        gradient_bytes=settings.parameters * (8 if settings.dtype == "float64" else 4),
    )


def from_profile(record: Profile) -> Workload:
    """A rank of a profiled step as a worker: means over ranks of medians over steps, without waits and exchanges."""
    ranks = record.ranks
    places = [place for place, layer in enumerate(record.layers) if "BatchNorm" in layer.kind and layer.calls]
    norms = [_norm(record, place) for place in places]
    idle = [sum(one.median for one in (rank.wait, rank.exchange) if one is not None) for rank in ranks]
    compute_us = 1e6 * float(np.mean([rank.step.median - gone for rank, gone in zip(ranks, idle, strict=True)]))
    rest = max(compute_us - sum(forward + backward for forward, backward in norms), 0.0)
    # Before each norm and after the last one.
    between = rest / (sum(record.layers[place].calls for place in places) + 1)
    layers = []
    for place, (forward, backward) in zip(places, norms, strict=True):
        layer = record.layers[place]
        size = meeting_bytes(layer.shape[1] if len(layer.shape) > 1 else 1)
        for call in range(layer.calls):
            layers.append(
                Layer(
                    name=layer.name if layer.calls == 1 else f"{layer.name}, call {call + 1}",
                    forward_us=between / 3 + forward / layer.calls,
                    backward_us=between * 2 / 3 + backward / layer.calls,
                    forward_bytes=size,
                    backward_bytes=size if layer.backward_bytes else 0,
                )
            )
    layers.append(Layer(name="after the last norm", forward_us=between / 3, backward_us=between * 2 / 3))
    step_spread = float(np.mean([_spread(rank.step.low, rank.step.high) for rank in ranks]))
    spread = _share_out(step_spread, [time for layer in layers for time in (layer.forward_us, layer.backward_us)])
    layers = [one.model_copy(update={"forward_spread": spread, "backward_spread": spread}) for one in layers]
    rows = record.layers[0].shape[0] if record.layers and record.layers[0].shape else 1
    assumed = [
        "A profile times the norm layers alone: what lies between them is taken for equally long everywhere, a third "
        "of it forward and two thirds backward.",
        "Compute varies independently from stretch to stretch, so that a step varies as recorded "
        f"({100 * step_spread:.1f} %).",
        "A profile does not tell the number of parameters: without --parameters the sum of gradients is left out.",
    ]
    number = "1 rank" if len(ranks) == 1 else f"{len(ranks)} ranks"
    return Workload(
        source=f"the recorded profile of {' '.join(record.target.split())}, {number}",
        assumed=assumed,
        rows=max(rows, 1),
        whole_rows=max(rows, 1) * max(len(ranks), 1),
        layers=layers,
    )


def _norm(record: Profile, number: int) -> tuple[float, float]:
    """Microseconds of a layer forward and backward, mean over ranks; what was waited and exchanged is taken off.

    A meeting's wait is recorded for both directions together: half of it is taken off each.
    """
    forward, backward = [], []
    for rank in record.ranks:
        times = rank.layers[number]
        gone = sum(one.median for one in (times.wait, times.exchange) if one is not None) / 2
        forward.append(max(times.forward.median - gone, 0.0))
        backward.append(max(times.backward.median - gone, 0.0) if times.backward is not None else 0.0)
    return 1e6 * float(np.mean(forward)), 1e6 * float(np.mean(backward))


def _spread(low: float, high: float) -> float:
    """Coefficient of variation of the lognormal with these 20th and 80th percentiles."""
    sigma = math.log(high / low) / (2 * _TAIL_SCORE) if low > 0 else 0.0
    return math.sqrt(math.expm1(sigma**2))


def _share_out(spread: float, pieces: Sequence[float]) -> float:
    """The coefficient of variation of independent pieces whose sum has that of ``spread``."""
    return spread * sum(pieces) / math.hypot(*pieces) if any(pieces) else 0.0
