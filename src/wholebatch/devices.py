"""Devices that a person names, and what is said where there is none."""

from __future__ import annotations

from typing import Any

import torch


def check_device(device: Any) -> None:
    """Raise where ``device`` is none, or a GPU that torch does not see: before torch does, whose error names no remedy.

    Raises:
        ValueError: no device has this name, there is no GPU here, or none of this number.
    """
    if not isinstance(device, str | torch.device):
        return
    try:
        named = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {str(device)!r}; choose 'cpu', 'cuda', or 'cuda:1' and the like") from None
    if named.type != "cuda":
        return
    if torch.cuda.is_available():
        if named.index is not None and named.index >= torch.cuda.device_count():
            raise ValueError(
                f"device is {str(device)!r}, and torch sees {torch.cuda.device_count()} GPUs, from cuda:0 on"
            )
    else:
        raise ValueError(
            f"device is {str(device)!r}, and {tell_no_gpu()}: choose 'cpu', or a machine that has one and torch for it"
        )


def tell_no_gpu() -> str:
    """That torch sees no GPU here, and how it was built."""
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    return f"torch sees no GPU here (torch {torch.__version__} {built})"
