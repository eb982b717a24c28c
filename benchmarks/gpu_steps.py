"""Training steps on a GPU, ours and torch's, interleaved: the shapes that ``benchmarks step`` has for the CPU."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.ratios import Bar, Ratio
from benchmarks.rounds import BURST_SECONDS, Contender, Timings
from benchmarks.shapes import Shape
from benchmarks.sheet import Sheet
from benchmarks.tables import microseconds
from benchmarks.talk import Talk

if TYPE_CHECKING:
    from benchmarks.systems import Trainer

OURS = "wholebatch"
LEAST = 32  # steps of a burst: an epoch of ours copies the parameters in and out, and a real one has hundreds of steps
BARS = {"A": Bar(3.0, True)}  # against torch eager with CUDA graphs off

LEGEND = """\
Times are microseconds for one training step (forward, backward and SGD's update in float32, batch norm), by the host's
clock with the device's work finished, medians over interleaved rounds of bursts of steps. wholebatch gathers shuffled
rows of a table on the device; the peers get mini-batches that lie ready there. 'torch' has no CUDA graph; 'compile,
graphs' is mode="reduce-overhead". GFLOP/s count the step's matrix products alone."""


def measure(shape: Shape, names: list[str], device: str, repeats: int, talk: Talk) -> Timings:
    """Seconds for one step, by contender and round; a contender that fails is told and left out."""
    timings = Timings()
    ready: dict[Contender, tuple[Trainer, int]] = {}
    for name, trainer in _build(shape, names, device, talk):
        steps = max(LEAST, round(BURST_SECONDS / max(trainer.run(LEAST) / LEAST, 1e-6)))
        trainer.run(steps)  # ours captures anew for another number of steps
        ready[Contender(shape.name, name, "batch", 1)] = trainer, steps
    order = list(ready)
    timings.seconds = {contender: [float("nan")] * repeats for contender in order}
    timings.notes = {contender: ready[contender][0].note for contender in order}
    shuffle = random.Random(0).shuffle
    for turn in range(repeats):
        talk.progress(f"shape {shape.name}: round {turn + 1} of {repeats}")
        shuffle(order)
        for contender in order:
            trainer, steps = ready[contender]
            timings.seconds[contender][turn] = trainer.run(steps) / steps
    return timings


def _build(shape: Shape, names: list[str], device: str, talk: Talk) -> Iterator[tuple[str, Trainer]]:
    from benchmarks.problem import Problem
    from benchmarks.systems import on_gpu

    problem = Problem(shape.batch, shape.sizes, "batch", "sgd", 1)
    systems = {**on_gpu.OURS, **{name: on_gpu.PEERS[name] for name in names if name in on_gpu.PEERS}}
    if "compile" in names:
        systems["compile, graphs"] = on_gpu.PEERS["compile, graphs"]
    for name, make in systems.items():
        talk.progress(f"shape {shape.name}: building {name}")
        try:
            yield name, make(problem, device)
        except Exception as error:  # a system that cannot be measured must not end the measurement
            talk.note(
                f"{name} is left out of shape {shape.name}: {type(error).__name__}: {' '.join(str(error).split())}"
            )


def times(shape: Shape, timings: Timings) -> Sheet:
    """One line a contender."""
    sheet = Sheet(f"{shape.name}: {shape}", ("system", "median", "p20–p80", "GFLOP/s"), words=1)
    for contender in sorted(timings.seconds, key=timings.median):
        low, middle, high = timings.quantiles(contender)
        speed = f"{shape.flops / middle / 1e9:,.0f}"
        sheet.rows.append((contender.system, microseconds(middle), f"{microseconds(low)}–{microseconds(high)}", speed))
    ours = timings.best(system=OURS)
    sheet.caption = "" if ours is None else f"{OURS}: {timings.notes[ours]}."
    return sheet


def ratios(shape: Shape, timings: Timings) -> list[Ratio]:
    """Every other system's time over ours; a bar for torch eager where there is one."""
    ours = timings.best(system=OURS)
    if ours is None:
        return []
    others = sorted((c for c in timings.seconds if c != ours), key=timings.median)
    return [
        Ratio(
            f"{other.system} / {OURS}",
            *timings.ratio(other, ours),
            BARS.get(shape.name) if other.system == "torch" else None,
        )
        for other in others
    ]
