"""``report.html``: a run's page, a pure rendering of its :class:`Recording`."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

from wholebatch.files import write
from wholebatch.pages import page
from wholebatch.runs.figures import draw
from wholebatch.runs.recording import LayerRecord, Recording

PAGE = resources.files("wholebatch.runs") / "page"
MOST_NEURONS = 13


def write_report(recording: Recording, path: Path) -> None:
    """Render ``recording`` to ``path``, whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    write(path, render(recording))


def render(recording: Recording) -> str:
    """The page; equal recordings give equal pages."""
    pictures = draw(recording)
    return page.render(
        "report",
        PAGE,
        [picture for section in pictures.values() for picture in section],
        r=recording,
        pictures=pictures,
        layers=net_picture(recording.layers),
    )


def net_picture(layers: list[LayerRecord]) -> list[dict[str, Any]]:
    """Where the net's neurons are drawn: for each layer dots in percent of the width, and the lines that reach them.

    A layer is as wide as the logarithm of its size; of more than 13 neurons the outer ones are drawn, a gap between.
    """
    widest = max(layer.size for layer in layers)
    drawn: list[dict[str, Any]] = []
    before: list[float] = []
    for layer in layers:
        count = min(layer.size, MOST_NEURONS)
        span = 92 * (0.12 + 0.88 * math.log1p(layer.size) / math.log1p(widest)) if count > 1 else 0
        places = [50 - span / 2 + span * i / max(count - 1, 1) for i in range(count)]
        if layer.size > MOST_NEURONS:
            del places[MOST_NEURONS // 2]
        lines = [(round(a, 2), round(b, 2)) for a in before for b in places]
        cut = layer.size > MOST_NEURONS
        drawn.append({"layer": layer, "dots": [round(p, 2) for p in places], "lines": lines, "cut": cut})
        before = places
    return drawn
