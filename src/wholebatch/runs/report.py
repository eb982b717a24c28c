"""``report.html``: one self-contained page, a pure rendering of a :class:`Recording`.

Nothing from outside can run in it: Jinja2 escapes all text, data stands in a JSON block that cannot be closed from
within, and the page's Content-Security-Policy lets no script run but its own two (named by their SHA-256), and nothing
be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from wholebatch.files import write
from wholebatch.pages.pictures import templates
from wholebatch.runs.figures import draw
from wholebatch.runs.recording import LayerRecord, Recording

PAGE = resources.files("wholebatch.runs") / "page"
MOST_NEURONS = 13
OPEN_ROWS = 12
"""Tables of no more rows than this stand open under their picture."""


def write_report(recording: Recording, path: Path) -> None:
    """Render ``recording`` to ``path``, whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    write(path, render(recording))


def render(recording: Recording) -> str:
    """The page; equal recordings give equal pages."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent}
    pictures = draw(recording)
    scripts = [get_plotlyjs(), _read("report.js")]
    figures = {p.name: p.as_json() for section in pictures.values() for p in section}
    return environment.get_template("report.html").render(
        r=recording,
        pictures=pictures,
        figures={"figures": figures, "templates": templates()},
        layers=net_picture(recording.layers),
        policy=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        scripts=[Markup(script) for script in scripts],  # our own and plotly's, named by hash above
        style=Markup(_read("report.css")),
        open_rows=OPEN_ROWS,
    )


def number(value: Any) -> str:
    """A count with thousands marked, a measure with four digits after the point, a dash for what is missing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        small = value != 0 and not 1e-3 <= abs(value) < 1e6
        return f"{value:.3e}" if small else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(value: float | None) -> str:
    """A share in percent with one digit after the point."""
    return "–" if value is None else f"{value:.1%}"


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


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
