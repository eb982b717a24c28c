"""A recording on the terminal: the tables and sentences of all that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from wholebatch.cost.recording import Recording
from wholebatch.cost.verticals import measured


def tell(recording: Recording) -> Sequence[RenderableType]:
    """Renderables for a :class:`rich.console.Console`, in the order of the page."""
    told = [renderable for module, record in measured(recording, "console") for renderable in module.tell(record)]
    return told or [Text("This recording holds no measurement.")]
