"""A small recording with all five measurements, made here, and the same with every name in it hostile."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from browsing import ENTITY, IMAGE, LINK, LONG, SCRIPT
from tables_for_runs import write_small
from wholebatch import runs
from wholebatch.cost.comparison.measuring import compare
from wholebatch.cost.comparison.record import Comparison
from wholebatch.cost.comparison.settings import Wanted as Compared
from wholebatch.cost.plan.adapters import from_timeline
from wholebatch.cost.plan.forecast import plan
from wholebatch.cost.plan.record import Check, Checked, Link, Network, Plan
from wholebatch.cost.profile.measuring import profile
from wholebatch.cost.profile.record import Profile
from wholebatch.cost.recording import Recording, here
from wholebatch.cost.synchronisation.record import Choice, Delay, Steps, Synchronisation, Training
from wholebatch.cost.timeline.measuring import measure
from wholebatch.cost.timeline.problem import Wanted as Drawn
from wholebatch.cost.timeline.record import Timeline
from wholebatch.cost.timing import Timing


def record_all(folder: Path) -> Recording:
    """Compared, drawn, profiled, planned and synchronised, each as small as it gets; the compiled part is needed."""
    timeline = _timeline()
    return Recording(
        origin=here(["wholebatch", "compare", "and", "more"]),
        comparison=_comparison(folder),
        timeline=timeline,
        profile=_profile(),
        plan=_plan(timeline),
        synchronisation=synchronised(),
    )


def spoil(recording: Recording) -> Recording:
    """The same with hostile text wherever it can hold any text: names that were equal stay so, and different ones
    stay different."""
    values = recording.model_dump()
    hostile = (f"{text}{number}" for number, text in enumerate(cycle((SCRIPT, IMAGE, LINK, ENTITY, LONG))))
    free: dict[tuple[str, ...], bool] = {}
    known: dict[str, str] = {}

    def change(value: Any, place: tuple[str, ...]) -> None:
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            here = (*place, key if isinstance(key, str) else "*")
            if isinstance(inner, (dict, list)):
                change(inner, here)
            elif isinstance(inner, str) and free.get(here, True):
                if inner not in known:
                    known[inner] = next(hostile)
                value[key] = known[inner]
                if here not in free:  # one of few words, such as a phase, is refused
                    free[here] = _fits(values)
                    value[key] = known[inner] if free[here] else inner

    change(values, ())
    return Recording.model_validate(values)


def _fits(values: Any) -> bool:
    try:
        Recording.model_validate(values)
    except ValidationError:
        return False
    return True


def _comparison(folder: Path) -> Comparison:
    table = write_small(folder / "table.csv", "a", "b", "color", "kind")
    settings = runs.Settings(
        table=str(table),
        target=("kind",),
        hidden=(8,),
        epochs=2,
        batch_size=16,
        dropout=0.0,
        label_smoothing=0.0,
        schedule="constant",
        patience=None,
    )
    return compare(Compared(settings, norms=("batch", "none"), seeds=2, rounds=3, burst_seconds=1e-3))


def _timeline() -> Timeline:
    settings = runs.Settings(
        table="random",
        target=("class",),
        hidden=(8, 8),
        batch_size=64,
        threads=2,
        dropout=0.0,
        label_smoothing=0.0,
    )
    return measure(Drawn(settings, features=4, steps=5, overhead_seconds=0.05))


def _profile() -> Profile:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(16, 4)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    measured = profile(step, "train:step", rounds=6)
    assert measured is not None
    return measured


def _plan(timeline: Timeline) -> Plan:
    """Planned from what was drawn; the check's numbers are made up, since ranks take seconds to start."""
    link = Link(latency_us=5, megabytes_per_second=1000, source="given")
    network = Network(meetings=link, gradients=link, exchange="allreduce")
    planned = plan(from_timeline(timeline), network, [2, 4, 1024], jitter=0.1)
    line = Checked(
        workers=2,
        synchronisation="all",
        steps=10,
        predicted_us=90,
        median_us=100,
        p20_us=95,
        p80_us=110,
        error_percent=-10,
        alone_us=50,
        others=0,
        crowding=1,
        predicted_idle_us=30,
        measured_idle_us=40,
        compute_us=55,
        told_us=95,
        told_error_percent=-5,
    )
    return planned.model_copy(update={"check": Check(hidden=[8], rows=64, cores=2, network=network, lines=[line])})


def synchronised() -> Synchronisation:
    """Made up, since ranks take seconds to start. Over each rank alone a step takes 3/4 as long, and a step late 7/8;
    delays double all; scores fall by 0.1 over each rank alone, and a step late by 0.02 in one of two seeds."""
    shorter: dict[Choice, float] = {"all": 1.0, "none": 0.75, "late": 0.875}
    lower: dict[Choice, tuple[float, float]] = {"all": (0.0, 0.0), "none": (0.1, 0.1), "late": (0.02, 0.0)}
    waits: dict[Delay, tuple[float, float]] = {"none": (0.1, 0.2), "last": (0.5, 0.0), "changing": (0.3, 0.3)}
    steps, trainings = [], list[Training]()
    for delay, shares in waits.items():
        for choice, times in shorter.items():
            whole = (1e-3 if delay == "none" else 2e-3) * times
            timing = Timing(seconds=[whole] * 3, steps=10, median=whole, low=0.9 * whole, high=1.2 * whole)
            wait, exchange = [share * whole for share in shares], [0.05 * whole, 0.05 * whole]
            compute = [whole - w - e for w, e in zip(wait, exchange, strict=True)]
            steps.append(
                Steps(choice=choice, delay=delay, timing=timing, compute=compute, exchange=exchange, wait=wait)
            )
    runs_of: list[tuple[int, Delay]] = [*((0, delay) for delay in waits), (1, "none")]
    for seed, delay in runs_of:
        for choice, times in shorter.items():
            seconds = [(1.0 if delay == "none" else 2.0) * times * epoch for epoch in range(3)]
            scores = [0.25, 0.75 - lower[choice][seed], 0.9 + 0.01 * seed - lower[choice][seed]]
            trainings.append(Training(choice=choice, delay=delay, seed=seed, seconds=seconds, scores=scores))
    return Synchronisation(
        table="table.csv",
        target_columns=["kind"],
        task="classification",
        score_name="accuracy",
        training_rows=800,
        validation_rows=200,
        sizes=[4, 8, 2],
        activation="relu",
        optimizer="adamw",
        learning_rate=3e-3,
        batch_size=32,
        epochs=2,
        steps_per_epoch=25,
        seeds=[0, 1],
        ranks=2,
        cores=4,
        choices=list(shorter),
        group_size=None,
        straggler=2.0,
        steps=steps,
        trainings=trainings,
        notes=["column 'same' is left out"],
    )
