"""A recording as a file for Perfetto (https://ui.perfetto.dev) or chrome://tracing: the Trace Event Format.

Source: "Trace Event Format", Google, the JSON Object Format: ``traceEvents`` with phases ``X`` (a span, microseconds)
and ``M`` (names of processes and threads).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wholebatch import files
from wholebatch.cost.recording import Recording
from wholebatch.cost.verticals import measured


def has_trace(recording: Recording) -> bool:
    """Whether anything in ``recording`` has a course in time."""
    return bool(_events(recording))


def write_trace(recording: Recording, path: Path) -> None:
    """Write the trace of ``recording`` to ``path``, whole or not at all; equal recordings give equal files.

    Raises:
        ValueError: it holds nothing that has a course in time.
        OSError: the folder cannot be written, or the disk is full.
    """
    events = _events(recording)
    if not events:
        raise ValueError(
            "there is nothing to trace: this recording holds no timeline; record one by `wholebatch timeline`"
        )
    trace = {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"wholebatch": recording.wholebatch, **recording.origin.model_dump(exclude={"versions"})},
    }
    files.write(path, json.dumps(trace, allow_nan=False) + "\n")


def _events(recording: Recording) -> list[dict[str, Any]]:
    return [event for module, record in measured(recording, "trace") for event in module.events(record)]
