"""The five measurements of a recording, each a subpackage with the same parts: ``section``, ``console``, ``trace``."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from wholebatch.cost.recording import Recording

VERTICALS = ("comparison", "timeline", "profile", "plan", "synchronisation")


def measured(recording: Recording, part: str) -> Iterator[tuple[ModuleType, Any]]:
    """For each measurement in ``recording`` the module ``part`` of its subpackage, where it has one, and its record.

    Only what was measured is imported.
    """
    for name in VERTICALS:
        record = getattr(recording, name)
        module = f"{__package__}.{name}.{part}"
        if record is not None and find_spec(module) is not None:
            yield import_module(module), record
