"""How long a rank waits for the others before it gives up."""

from __future__ import annotations

import math

_chosen: float | None = None


def set_timeout(seconds: float | None) -> None:
    """How long a rank waits for the others at a batch norm, from now on, in every group.

    Args:
        seconds: None: as long as the process group's own timeout says (the default).

    Raises:
        ValueError: seconds are not a positive, finite number.
    """
    global _chosen
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"the timeout must be positive seconds, or None for the group's own; it is {seconds}")
    _chosen = None if seconds is None else float(seconds)


def chosen_timeout() -> float | None:
    """What was set; None: the group's own."""
    return _chosen
