"""Self-contained HTML pages: a template within the common frame, its pictures, and plotly.js, in one file.

Nothing from outside can run in a page: Jinja2 escapes all text, data stands in a JSON block that cannot be closed from
within, and the page's Content-Security-Policy lets no script run but its own two (named by their SHA-256), and nothing
be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from wholebatch.pages.pictures import Picture, templates

FRAME = resources.files("wholebatch.pages") / "frame"
OPEN_ROWS = 12
"""Tables of no more rows than this stand open under their picture."""


def render(name: str, folder: Traversable, pictures: Sequence[Picture], /, **values: Any) -> str:
    """The page that ``NAME.html`` in ``folder`` makes of ``values``; equal values give equal pages.

    Args:
        name: of the template, which extends ``base.html``, and of its own ``NAME.css`` beside it.
        folder: where both are.
        pictures: all that the page draws; the template places each by ``drawing(picture)``.
        values: what the template shows.

    Raises:
        ValueError: two pictures of one name.
    """
    figures = {picture.name: picture.as_json() for picture in pictures}
    if len(figures) < len(pictures):
        names = [picture.name for picture in pictures]
        raise ValueError(f"two pictures of a page are named {next(n for n in names if names.count(n) > 1)!r}")
    places = (folder, FRAME)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: _find(file, places)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"number": number, "measure": measure, "percent": percent}
    scripts = [get_plotlyjs(), _read(FRAME / "figures.js")]
    return environment.get_template(f"{name}.html").render(
        **values,
        figures={"figures": figures, "templates": templates()},
        policy=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        scripts=[Markup(script) for script in scripts],  # our own and plotly's, named by hash above
        style=Markup(_read(FRAME / "frame.css") + _read(folder / f"{name}.css")),
        open_rows=OPEN_ROWS,
    )


def number(value: Any) -> str:
    """A count with thousands marked, a score with four digits after the point, a dash for what is missing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        small = value != 0 and not 1e-3 <= abs(value) < 1e6
        return f"{value:.3e}" if small else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def measure(value: Any) -> str:
    """The same, but a float with four digits in all, since measurements have units that make them large or small."""
    if not isinstance(value, float) or value == 0 or not math.isfinite(value):
        return "0" if value == 0 else number(value)
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3e}"
    after = 3 - math.floor(math.log10(abs(float(f"{value:.3e}"))))  # rounded first: 9.9996 has two digits before
    return f"{value:,.{max(after, 0)}f}"


def percent(value: float | None) -> str:
    """A share in percent with one digit after the point."""
    return "–" if value is None else f"{value:.1%}"


def _find(file: str, places: Sequence[Traversable]) -> str | None:
    return next((_read(place / file) for place in places if (place / file).is_file()), None)


def _read(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
