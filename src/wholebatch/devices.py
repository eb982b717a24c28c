"""Devices that a person names, and what is said where there is none."""

from __future__ import annotations

from typing import Any

import torch


def check_device(device: Any) -> None:
    """Raise where ``device`` is a GPU and torch sees none: before torch does, whose error names no remedy.

    Raises:
        ValueError: there is no GPU here.
    """
    if isinstance(device, str | torch.device) and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {str(device)!r}, and {tell_no_gpu()}: use device='cpu', or a machine that has one and torch "
            "for it"
        )


def tell_no_gpu() -> str:
    """That torch sees no GPU here, and how it was built."""
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    return f"torch sees no GPU here (torch {torch.__version__} {built})"
