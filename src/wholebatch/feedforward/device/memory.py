"""What room is left on a device, and the refusal of what does not fit there, before any of it is taken."""

from __future__ import annotations

import torch

from wholebatch.feedforward.memory import SMALL, Need, human


def check_room(device: torch.device, needed: int, what: str) -> None:
    """Raise where ``what`` does not fit; it begins the sentence.

    Raises:
        ValueError: naming the bytes needed and free, and the remedy.
    """
    if device.type != "cuda":
        Need(table=needed).check(what)
        return
    if needed < SMALL:
        return
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"{what} needs {human(needed)} on {device}, {human(free)} are free there; train on the CPU "
            "(device='cpu'), which reads the table where it is, or choose fewer rows"
        )


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still take on a GPU: the driver's, and those that torch keeps for it."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
