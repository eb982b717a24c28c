"""The recording of what normalisation costs: one JSON file, from which console, page and trace are rendered."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from wholebatch import files
from wholebatch.cost.comparison.record import Comparison
from wholebatch.cost.plan.record import Plan
from wholebatch.cost.profile.record import Profile
from wholebatch.cost.timeline.record import Timeline
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
    """One measurement or several; a section that was not measured is ``None``."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["wholebatch cost"] = "wholebatch cost"
    version: int = VERSION
    origin: Origin
    comparison: Comparison | None = None
    timeline: Timeline | None = None
    profile: Profile | None = None
    plan: Plan | None = None

    def save(self, path: Path) -> None:
        """Write it to ``path``, whole or not at all.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        files.write(path, self.model_dump_json(indent=1) + "\n")


def load(path: Path) -> Recording:
    """The recording in ``path``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no recording, is damaged, or was made by a newer version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{path} is no recording: it is not JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no recording of costs: its format is {values.get('format')!r}, not {FORMAT!r}"
            if isinstance(values, dict)
            else f"{path} is no recording of costs: it holds a {type(values).__name__}, not an object"
        )
    found = values.get("version")
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"{path} names no version; recordings have a whole number of at least 1")
    if found > VERSION:
        raise ValueError(
            f"{path} is a recording of version {found}, and this wholebatch ({version('wholebatch')}) reads up to "
            f"{VERSION}; install a newer wholebatch"
        )
    try:
        return Recording.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {_first(error)}") from error


def here(command: Sequence[str] | None = None) -> Origin:
    """This machine, now."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    return Origin(
        command=shlex.join(command if command is not None else ["wholebatch", *sys.argv[1:]]),
        date=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        processor=_processor(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        instruction_set=instruction_set(),
        versions={
            "wholebatch": version("wholebatch"),
            "torch": torch.__version__,
            "numpy": version("numpy"),
            "Python": platform.python_version(),
        },
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _first(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
