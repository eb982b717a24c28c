"""The systems that are measured, one module each.

A module has ``load() -> str`` (imports what it needs and tells the version; raises :class:`LeftOut` or ImportError) and
``make(problem) -> Trainer``. It is imported in a worker process that already stands on its cores.
"""

from __future__ import annotations

from typing import Protocol

# By the name that reports give them: the module in this package.
SYSTEMS = {
    "wholebatch": "ours",
    "torch": "eager",
    "compile": "compiled",
    "jax": "jitted",
    "jax-scan": "scanned",
    "sklearn": "perceptron",
}
PEERS = tuple(name for name in SYSTEMS if name != "wholebatch")
# What is measured unless a person says otherwise: peers as they are used, called for each step.
USUAL_PEERS = tuple(name for name in PEERS if name != "jax-scan")


class LeftOut(Exception):
    """A system that cannot be measured here; the message has the reason and the remedy."""


class Trainer(Protocol):
    """A net that can be trained for a number of steps. ``note`` says which variant it is, where there are several."""

    note: str

    def run(self, steps: int) -> float:
        """Do so many training steps; returns the seconds that they took, all work finished."""
        ...
