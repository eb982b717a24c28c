"""``record``: the profile of a training loop as it runs, where there is no function to be called again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Literal

from torch import nn

from wholebatch.cost.profile.clock import clock_of, device_of
from wholebatch.cost.profile.crew import Crew
from wholebatch.cost.profile.measuring import collect
from wholebatch.cost.profile.norms import find_norms
from wholebatch.cost.profile.probes import Probes, Visit
from wholebatch.cost.profile.samples import Samples
from wholebatch.cost.recording import Recording, here

LEAST_STEPS = 3  # one to warm up, one with probes, one without


class Recorder:
    """What :func:`record` gives: the end of each step is marked on it, and the recording found on it afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.norms = model, find_norms([model])
        self._device = device_of([model])
        self._clock = clock_of(self._device)
        self._probes = Probes(self.norms, self._clock)
        self._samples, self._visits = Samples(), list[Visit]()
        self._steps, self._probed = 0, False
        self._recording: Recording | None = None
        self._start = 0.0

    @property
    def recording(self) -> Recording:
        """What was recorded.

        Raises:
            RuntimeError: the context has not been left yet, was left by an exception, or is another rank's to tell.
        """
        if self._recording is None:
            raise RuntimeError(
                "there is no recording: it is made at the end of the record context, and of several ranks on rank 0"
            )
        return self._recording

    def step(self) -> None:
        """A training step ends here, and the next one begins."""
        self._clock.settle()
        seconds = time.perf_counter() - self._start
        if self._probed:
            self._probes.detach()
            visits, stays = self._probes.end()
            if self._steps == 0:
                self._visits, self._probes.surveying = visits, False
            else:
                self._samples.add(seconds, visits, stays, probed=True)
        else:
            self._samples.add(seconds)
        self._steps += 1
        self.begin()

    def begin(self) -> None:
        """The first step, and every other one, has probes."""
        self._probed = self._steps % 2 == 0
        if self._probed:
            self._probes.attach()
            self._probes.begin()
        self._clock.settle()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Leave the model as it was."""
        self._probes.detach()

    def finish(self, crew: Crew) -> None:
        """Make the recording, from all ranks.

        Raises:
            ValueError: too few steps were marked, the model runs compiled, or ranks have different models.
        """
        if self._steps < LEAST_STEPS:
            raise ValueError(
                f"{self._steps} steps were marked; call recorder.step() at the end of each training step, at least "
                f"{LEAST_STEPS} times"
            )
        if self._probes.compiled:
            raise ValueError("the model runs through torch.compile, where a layer has no time of its own")
        crew.compare(self.norms)
        profile = collect(
            crew,
            type(self.model).__name__,
            [self.model],
            self.norms,
            self._visits,
            self._samples,
            self._device.type,
            entangled=self._probes.entangled,
        )
        if profile is not None:
            self._recording = Recording(origin=here(), profile=profile)


@contextmanager
def record(
    model: nn.Module, path: str | PathLike[str] | None = None, *, process_group: Literal["world"] | None = None
) -> Iterator[Recorder]:
    """Record what the normalisation layers of ``model`` cost in a training loop::

        with wholebatch.cost.record(model, "recording.json") as recorder:
            for x, y in loader:
                ...
                recorder.step()

    A step lasts from one mark to the next, whatever is done between them. Every other step runs without probes, so that
    their own cost is known; the first one warms up and is not counted. The model is left as it was found. What
    converting would save is not measured here, for that would take over the training: ``wholebatch profile`` does.

    Args:
        model: any module; where it is wrapped for data parallelism, either.
        path: where the recording is written, whole or not at all; None: nowhere.
        process_group: ``"world"``: all ranks of the default group record, and rank 0's recording tells of all, with
            waiting and exchanging at shared layers. None: this process alone.

    Raises:
        TypeError: not a module.
        ValueError: (at the end) fewer than three steps were marked, or ranks have different models; no group is open.
        OSError: (at the end) ``path`` cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"record takes a torch.nn.Module, and got a {type(model).__name__}")
    if process_group not in (None, "world"):
        raise ValueError(f"process_group is {process_group!r}; it must be None or 'world'")
    crew = Crew() if process_group is None else Crew.of_group()
    recorder = Recorder(model)
    recorder.begin()
    try:
        yield recorder
    finally:
        recorder.stop()
    recorder.finish(crew)
    if path is not None and crew.rank == 0:
        recorder.recording.save(Path(path))
