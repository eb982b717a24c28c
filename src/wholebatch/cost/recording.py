"""The recording of what normalisation costs: one JSON file, from which console, page and trace are rendered.

It holds plain values only, so it can be read on a machine that has neither the model nor the processors it was
measured on, and it can be rendered again by a later wholebatch.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wholebatch import files
from wholebatch.cost.comparison.record import Comparison
from wholebatch.cost.plan.record import Plan
from wholebatch.cost.profile.record import Profile
from wholebatch.cost.synchronisation.record import Synchronisation
from wholebatch.cost.timeline.record import Timeline
from wholebatch.described import read_described
from wholebatch.kernels import instruction_set

FORMAT, VERSION = "wholebatch cost", 1


class Origin(BaseModel):
    """Where, when and with what it was measured.

    Attributes:
        command: as it was typed.
        date: UTC, ISO 8601, to the second.
        processor: model, as the system tells.
        cores: that the process might use.
        instruction_set: of the native kernels.
        versions: of wholebatch, torch, numpy and Python.
    """

    model_config = ConfigDict(extra="forbid")

    command: str
    date: str
    processor: str
    cores: int
    instruction_set: str
    versions: dict[str, str]


class Recording(BaseModel):
    """One measurement or several; a section that was not measured is ``None``.

    Attributes:
        format, version, wholebatch: what the file is, of which version, and what wrote it.
        origin: where, when and with what it was measured.
        comparison: the same net with several norms, time per step and to a target.
        timeline: one real step of the engine, thread by thread.
        profile: each normalisation layer of a person's own model, in their own step.
        plan: step time and wait with more workers.
        synchronisation: whose rows batch norm is over, where ranks train one net.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["wholebatch cost"] = "wholebatch cost"
    version: int = VERSION
    wholebatch: str = Field(default_factory=lambda: version("wholebatch"))
    origin: Origin
    comparison: Comparison | None = None
    timeline: Timeline | None = None
    profile: Profile | None = None
    plan: Plan | None = None
    synchronisation: Synchronisation | None = None

    def save(self, path: Path) -> None:
        """Write it to ``path``, whole or not at all.

        Raises:
            ValueError: a number in it is not finite; what could not be measured is ``None``.
            OSError: the folder cannot be written, or the disk is full.
        """
        _check_finite(self)
        files.write(path, self.model_dump_json(indent=1) + "\n")


def load(path: Path) -> Recording:
    """The recording in ``path``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no recording, is damaged, or was made by a newer version.
    """
    recording = read_described(path, Recording, FORMAT, VERSION)
    try:
        _check_finite(recording)  # 1e999 is JSON, and infinite
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from error
    return recording


def here(command: Sequence[str] | None = None) -> Origin:
    """This machine, now.

    Args:
        command: what was asked for, the program first; this process's own command line where it is ``None``.
    """
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    return Origin(
        command=shlex.join(command if command is not None else ["wholebatch", *sys.argv[1:]]),
        date=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        processor=processor(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        instruction_set=instruction_set(),
        versions={
            "wholebatch": version("wholebatch"),
            "torch": torch.__version__,
            "numpy": version("numpy"),
            "Python": platform.python_version(),
        },
    )


def processor() -> str:
    """The processor's model, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _check_finite(recording: Recording) -> None:
    """Raise ValueError, naming the place, where a number is not finite: JSON has none, and ``null`` is no number."""
    for place, value in _numbers(recording.model_dump(), ()):
        if not math.isfinite(value):
            raise ValueError(f"{'.'.join(place)} is {value}; a recording holds finite numbers only")


def _numbers(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, (*place, str(name)))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _numbers(inner, (*place, str(index)))
    elif isinstance(value, float):
        yield place, value
