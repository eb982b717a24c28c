"""From a person's function to the profile of its step, on one process or on every rank."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from wholebatch.cost.profile.change import Change
from wholebatch.cost.profile.clock import clock_of, device_of
from wholebatch.cost.profile.crew import Crew
from wholebatch.cost.profile.discovery import Discovery, discovering
from wholebatch.cost.profile.norms import Norm, find_norms, name_models
from wholebatch.cost.profile.probes import Visit
from wholebatch.cost.profile.record import Profile, Rank
from wholebatch.cost.profile.rounds import LEAST, Kind, Plan, Stepper, plan_rounds
from wholebatch.cost.profile.samples import Samples
from wholebatch.cost.profile.snapshot import Snapshot
from wholebatch.cost.profile.step import StepError, call, take_step
from wholebatch.cost.profile.summary import spread, summarise

SECONDS = 20.0
Progress = Callable[[int, int], None]


def profile(
    function: Callable[[], Any],
    target: str,
    *,
    rounds: int | None = None,
    seconds: float = SECONDS,
    converting: bool = True,
    progress: Progress = lambda done, rounds: None,
) -> Profile | None:
    """Measure a training step, with and without probes, and with its batch norms converted, in interleaved rounds.

    Called once, ``function`` does a training step, or returns a callable that does. After one call that finds the
    models it is called again and again: in each round a burst of steps of each kind. Afterwards parameters, buffers,
    gradients, training flags, the states of the optimizers that were seen and the global random generators are as they
    were after the first call; what the step changes elsewhere (data loaders, learning rate schedules) stays changed.

    Under torchrun every rank calls this with the same arguments; ranks find each other over the default process group's
    store, or over torchrun's where ``function`` opened no group.

    Args:
        function: takes no arguments.
        target: what to call it.
        rounds: how many; None: as many as take about ``seconds``, from 6 to 100.
        seconds: see ``rounds``; rank 0's clock decides.
        converting: measure what converting would save, too.
        progress: called after each round with the rounds done and those there are.

    Returns:
        The profile on rank 0, None on every other rank.

    Raises:
        StepError: the function cannot be measured or failed; see :mod:`wholebatch.cost.profile.step`. Also where it
            called no module or took no derivative, and where it runs compiled.
        ValueError: ranks have different models, or another rank failed.
    """
    try:
        step, seen = _discover(function, target)
    except StepError as error:
        with contextlib.suppress(ValueError):  # the others cannot be found: then they need not be told
            Crew.find().fail(error)
        raise
    crew = Crew.find()
    try:
        return _measure(crew, step, seen, target, rounds, seconds, converting, progress)
    except Exception as error:
        crew.fail(error)
        raise


def _measure(
    crew: Crew,
    step: Callable[[], None],
    seen: Discovery,
    target: str,
    rounds: int | None,
    seconds: float,
    converting: bool,
    progress: Progress,
) -> Profile | None:
    models = seen.normalising
    norms = find_norms(models)
    crew.compare(norms)
    snapshot = Snapshot(seen.models, list(seen.optimizers))
    try:
        if not norms:
            return _without_norms(step, target, seen, crew)
        change = Change(models, norms) if converting else None
        if change is not None and not change.layers:
            change = None
        device = device_of(models)
        stepper = Stepper(step, norms, clock_of(device), change)
        first = stepper.warm_up()
        _check_first(stepper, target)
        plan = Plan(*crew.share("plan", plan_rounds(first, len(stepper.kinds), crew.ranks, rounds, seconds))[0])
        samples = stepper.measure(plan, lambda done: progress(done, plan.rounds))
    finally:
        snapshot.restore()
    return collect(crew, target, models, norms, stepper.visits, samples, device.type, change, stepper.probes.entangled)


def collect(
    crew: Crew,
    target: str,
    models: Sequence[nn.Module],
    norms: Sequence[Norm],
    visits: Sequence[Visit],
    samples: Samples,
    device: str,
    change: Change | None = None,
    entangled: bool = False,
) -> Profile | None:
    """The profile of all ranks on rank 0, None on every other."""
    told = samples.model_dump(mode="json")
    crew.tell("samples", told)
    if crew.rank:
        return None
    gathered = [Samples.model_validate(one) for one in crew.gather("samples", told)]
    notes = list(change.notes) if change is not None else []
    if entangled:
        notes.append(
            "A layer was entered again before it was left, as by micro-batches in lockstep: its time has theirs in it."
        )
    notes += _tell_busy()
    return summarise(target, name_models(models), device, norms, visits, gathered, change, notes)


def _discover(function: Callable[[], Any], target: str) -> tuple[Callable[[], None], Discovery]:
    """The step, and what it was seen to use."""
    what = target
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # with our hooks; it is told below
        with discovering() as seen:
            step = take_step(call(function, target), target)
        if step is None:
            step = function
        else:
            what = f"the step of {target}"
            with discovering() as seen:
                call(step, what)
    chosen = step
    if seen.compiled_norms:
        raise StepError(
            f"{what} runs its model through torch.compile, where a layer has no time of its own; profile it without"
        )
    if not seen.called:
        raise StepError(
            f"{what} called no torch.nn.Module, so there is nothing to measure; let it run the model on one batch, "
            "call backward and step the optimizer (what torch.compile compiled before is not seen, nor the engine of a "
            "wholebatch.FeedForward: wholebatch timeline looks into that)"
        )
    return lambda: call(chosen, what), seen


def _check_first(stepper: Stepper, target: str) -> None:
    if stepper.probes.compiled:
        raise StepError(
            f"{target} runs its model through torch.compile, where a layer has no time of its own; profile it without"
        )
    if not any(visit.calls for visit in stepper.visits):
        raise StepError(
            f"{target} called its model once, and not again: each call of the step has to run it on one batch"
        )
    if all(visit.backward is None for visit in stepper.visits):
        raise StepError(
            f"{target} took no derivative through a normalisation layer; a training step is measured: call "
            "loss.backward() in it, and not under torch.no_grad()"
        )


def _tell_busy() -> list[str]:
    """A note where others had the machine, too."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= cores + 1:
        return []
    return [f"The machine had other work (load {load:.0f} on {cores} cores): times are longer than on a quiet one."]


def _without_norms(step: Callable[[], None], target: str, seen: Discovery, crew: Crew) -> Profile | None:
    """The answer where there is no layer: only the step's time."""
    models = seen.models
    device = device_of(models)
    stepper = Stepper(step, [], clock_of(device), None)
    seconds = [one.seconds for one in stepper.run(Kind(False, False), LEAST, settled=True)]
    if crew.rank:
        return None
    notes = ["Calls of torch.nn.functional.batch_norm, layer_norm and the like outside of a module are not seen."]
    return Profile(
        target=target,
        models=[],
        device=device.type,
        threads=torch.get_num_threads(),
        rounds=LEAST,
        step=spread(seconds),
        share=spread([0.0]),
        overhead=None,
        layers=[],
        ranks=[Rank(rank=0, host=Samples().host, step=spread(seconds), layers=[])],
        notes=notes,
    )
