"""Where and with what a measurement was made."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from wholebatch.cost.recording import processor
from wholebatch.kernels import instruction_set


def describe(places: Sequence[int], versions: Mapping[str, str]) -> list[str]:
    """The lines above the tables: machine, instruction set, versions, date, command."""
    used = ", ".join(map(str, places))
    forced = " (forced)" if os.environ.get("WHOLEBATCH_INSTRUCTION_SET") else ""
    libraries = " · ".join(f"{name} {value}" for name, value in versions.items())
    return [
        f"{processor()}, {os.cpu_count()} cores, of them used: {used}; {platform.system()} {platform.release()}",
        f"instruction set of wholebatch: {instruction_set()}{forced}",
        f"{libraries} · numpy {version('numpy')} · Python {platform.python_version()}",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, python -m benchmarks {shlex.join(sys.argv[1:])}",
    ]
