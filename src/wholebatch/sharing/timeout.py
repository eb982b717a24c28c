"""How long a rank waits for the others before it gives up."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.distributed import ProcessGroup
from torch.distributed.constants import default_pg_timeout

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


def timeout_of(group: ProcessGroup) -> Callable[[], float]:
    """Seconds that a rank of this group waits for the others, at the time of the call. Does not keep the group."""
    return partial(_find, _own_timeout(group))


def _find(of_group: float) -> float:
    return _chosen or of_group


def _own_timeout(group: ProcessGroup) -> float:
    for device in ("cpu", "cuda"):
        try:
            return float(group._get_backend(torch.device(device)).options._timeout.total_seconds())
        except (RuntimeError, AttributeError):
            continue
    return default_pg_timeout.total_seconds()
