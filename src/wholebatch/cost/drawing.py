"""What the pictures of several measurements share: colors, units, and how a name begins."""

from __future__ import annotations

# Told apart on a light and on a dark ground, and by people who see no red or no green (after Okabe and Ito, 2008).
PARTS = {"compute": "#2f7fd6", "wait": "#d9822b", "exchange": "#8f6bb8"}
"""What workers do in a step."""
LINE = "#6f7986"
"""Of spreads: seen on bars and on either ground."""


def time_unit(most: float) -> tuple[str, float]:
    """The unit that suits values of up to so many seconds, and its size."""
    return ("s", 1.0) if most >= 2 else ("ms", 1e-3) if most >= 2e-3 else ("µs", 1e-6)


def faint(color: str) -> str:
    """``#rrggbb`` as the fill of a band around its line."""
    return f"rgba({','.join(map(str, channels(color)))},0.13)"


def channels(color: str) -> list[int]:
    """Red, green and blue of ``#rrggbb``."""
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]


def capital(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]
