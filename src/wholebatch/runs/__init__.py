"""The run folder: training into it, going on from it, predicting from it, and its report."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wholebatch.runs.folder import Run
    from wholebatch.runs.model import Model
    from wholebatch.runs.recording import Recording
    from wholebatch.runs.report import render, write_report
    from wholebatch.runs.session import Session, begin, resume
    from wholebatch.runs.settings import Settings

__all__ = ["Model", "Recording", "Run", "Session", "Settings", "begin", "render", "resume", "write_report"]

# Imported when a name is asked for: who only looks into a run folder need not wait for scikit-learn.
_ROOMS = {
    "folder": ("Run",),
    "model": ("Model",),
    "recording": ("Recording",),
    "report": ("render", "write_report"),
    "session": ("Session", "begin", "resume"),
    "settings": ("Settings",),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"wholebatch.runs.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
