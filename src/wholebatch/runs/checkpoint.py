"""The checkpoint: one file that is all a killed run goes on from, replaced whole after each epoch.

A safetensors file whose header holds, as JSON text, the format, its version, the history so far and the SHA-256 of the
tensors (safetensors itself checks sizes, not contents). History and tensors in one file cannot disagree.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

import wholebatch
from wholebatch.feedforward.training import History, State
from wholebatch.files import write

FORMAT, VERSION = "wholebatch checkpoint", 1
FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, state: State) -> None:
    """Write ``state`` whole or not at all; the checkpoint before it stays until then.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    tensors = {name: value.contiguous() for name, value in state.tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "wholebatch": wholebatch.__version__,
        "sha256": _digest(tensors),
        "state": json.dumps(state.values()),
    }
    write(folder / FILE, safetensors.torch.save(tensors, metadata))


def load_checkpoint(folder: Path) -> State | None:
    """The state of the last whole epoch, or None where no epoch was finished.

    Raises:
        ValueError: the file is corrupt, cut short, of a newer format or not of wholebatch.
        OSError: it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is corrupt or cut short ({error}); start the run anew with another --out") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of wholebatch; start the run anew with another --out")
    if int(metadata["version"]) > VERSION:
        raise ValueError(
            f"{path} has version {metadata['version']} (written by wholebatch {metadata.get('wholebatch', '?')}), but "
            f"this is wholebatch {wholebatch.__version__}, which reads up to version {VERSION}; "
            "upgrade it: pip install --upgrade wholebatch"
        )
    if _digest(tensors) != metadata.get("sha256"):
        raise ValueError(
            f"{path} is corrupt: its tensors do not have the SHA-256 it names; start the run anew with another --out"
        )
    values: dict[str, Any] = json.loads(metadata["state"])
    return State(History(**values["history"]), values["step"], tensors)


def epochs_kept(folder: Path) -> int:
    """How many epochs the checkpoint in ``folder`` holds, from its header alone; 0 where there is none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with safetensors.safe_open(str(folder / FILE), framework="numpy") as file:
            values = json.loads(file.metadata()["state"])
    except FileNotFoundError:
        return 0
    return len(values["history"]["epochs"])


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).numpy().tobytes())
    return total.hexdigest()
