"""What normalisation costs, measured: compared, drawn over time, by layer, and planned for many workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wholebatch.cost.profile.recorder import Recorder, record

__all__ = ["Recorder", "record"]


def __getattr__(name: str) -> Any:
    """Import what measures only when it is asked for: a recording is read without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wholebatch.cost.profile import recorder

    return getattr(recorder, name)
