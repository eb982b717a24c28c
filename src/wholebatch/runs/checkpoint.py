"""The checkpoint: one file that is all a killed run goes on from, replaced whole after each epoch.

A safetensors file whose header holds, as JSON text, the format, its version, the history so far and the SHA-256 of
history and tensors (safetensors itself checks sizes, not contents). History and tensors in one file cannot disagree.

The one before stays beside it. A disk that returns other bytes than it was given costs an epoch, and not the run: what
is read is verified, and where the newest is spoiled, the one before is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

import wholebatch
from wholebatch.feedforward.training import History, State
from wholebatch.files import write

FORMAT, VERSION = "wholebatch checkpoint", 2
FILE, PREVIOUS, SPOILED = "checkpoint.safetensors", "checkpoint.previous.safetensors", "checkpoint.spoiled.safetensors"
ANEW = "start the run anew with another --out"


class SpoiledError(ValueError):
    """A checkpoint that is corrupt, cut short or none at all."""


@dataclass(frozen=True)
class Found:
    """What a run can go on from.

    Attributes:
        content: the checkpoint's file, verified; None: no epoch was finished.
        state: what it holds.
        fault: what is wrong with the newest file, where the one before was taken in its place.
    """

    content: bytes | None = None
    state: State | None = None
    fault: str = ""


def save_checkpoint(folder: Path, state: State) -> None:
    """Write ``state`` whole or not at all; the checkpoint before it gets the name of the previous one.

    Raises:
        OSError: the folder cannot be written, or the disk is full; both checkpoints are as they were.
    """
    tensors = {name: value.contiguous() for name, value in state.tensors.items()}
    values = json.dumps(state.values())
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "wholebatch": wholebatch.__version__,
        "sha256": _digest(tensors, values),
        "state": values,
    }
    write(folder / FILE, safetensors.torch.save(tensors, metadata), keep=folder / PREVIOUS)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from; it is not read."""
    return any((folder / name).exists() for name in (FILE, PREVIOUS))


def find_checkpoint(folder: Path) -> Found:
    """The newest checkpoint that is whole.

    Raises:
        ValueError: there are files, and none of them is whole (naming what is wrong with the newest), or the newest is
            of a newer format.
        OSError: one cannot be read.
    """
    faults: list[SpoiledError] = []
    for path in (folder / FILE, folder / PREVIOUS):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        try:
            return Found(content, read_checkpoint(content, path), str(faults[0]) if faults else "")
        except SpoiledError as error:
            faults.append(error)
    if faults:
        raise SpoiledError(f"{faults[0]}; {ANEW}") from faults[0]
    return Found()


def put_spoiled_aside(folder: Path) -> None:
    """Where the newest checkpoint is spoiled: rename it, so that it does not become the previous one."""
    os.replace(folder / FILE, folder / SPOILED)


def read_checkpoint(content: bytes, path: Path) -> State:
    """The state in a checkpoint's file; ``path`` names it in errors.

    Raises:
        SpoiledError: it is corrupt, cut short or not of wholebatch.
        ValueError: it is of a newer format.
    """
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise SpoiledError(f"{path} is corrupt or cut short ({error})") from error
    if metadata.get("format") != FORMAT:
        raise SpoiledError(f"{path} is no checkpoint of wholebatch")
    try:
        version = int(metadata["version"])
        values = metadata["state"]
    except (KeyError, ValueError) as error:
        raise SpoiledError(f"{path} is corrupt: its header has no version or no state") from error
    if version > VERSION:
        raise ValueError(
            f"{path} has version {version} (written by wholebatch {metadata.get('wholebatch', '?')}), but "
            f"this is wholebatch {wholebatch.__version__}, which reads up to version {VERSION}; "
            "upgrade it: pip install --upgrade wholebatch"
        )
    if _digest(tensors, values if version > 1 else "") != metadata.get("sha256"):
        raise SpoiledError(f"{path} is corrupt: its contents do not have the SHA-256 it names")
    plain: dict[str, Any] = json.loads(values)
    return State(History(**plain["history"]), plain["step"], tensors)


def epochs_kept(folder: Path) -> int:
    """How many epochs a resumed run would not train again: those of :func:`find_checkpoint`; 0 where there is none.

    Raises:
        ValueError, OSError: as there.
    """
    state = find_checkpoint(folder).state
    return 0 if state is None else len(state.history.epochs)


def _digest(tensors: dict[str, Tensor], values: str) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names, and the plain values."""
    total = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).numpy().tobytes())
    return total.hexdigest()
