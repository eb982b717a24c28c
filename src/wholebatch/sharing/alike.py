"""Where ranks differ that have to be alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def find_difference(told: Sequence[Mapping[str, Any]]) -> tuple[str, int] | None:
    """The first name under which a rank told something else than rank 0, and that rank; None where all are alike."""
    for name in dict.fromkeys(name for facts in told for name in facts):
        for rank, facts in enumerate(told):
            if facts.get(name) != told[0].get(name):
                return name, rank
    return None
