"""The norms that are compared, by the names that the command line has for them."""

from __future__ import annotations

from wholebatch.cost.comparison.record import NormName
from wholebatch.feedforward.settings import Norm, NormPosition

# name: torch's kind of norm, where it stands, and how it is called in a sentence
NORMS: dict[NormName, tuple[Norm, NormPosition, str]] = {
    "batch": ("batch", "before", "batch norm"),
    "batch-after": ("batch", "after", "batch norm after the activation"),
    "layer": ("layer", "before", "layer norm"),
    "rms": ("rms", "before", "rms norm"),
    "none": ("none", "before", "no norm"),
}
SHORT: dict[NormName, str] = {
    "batch": "batch",
    "batch-after": "batch, after",
    "layer": "layer",
    "rms": "rms",
    "none": "none",
}
"""For heads and axes."""


def words(norm: NormName) -> str:
    """The norm in a sentence."""
    return NORMS[norm][2]
