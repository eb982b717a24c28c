"""Folders that a command makes for what it leaves behind."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path


def name_new(parent: str, name: str) -> Path:
    """``PARENT/NAME-DATE``, one that is not there yet; what no file system likes in ``name`` becomes a hyphen."""
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:80] or parent.rstrip("s")
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    taken = sum(1 for _ in Path(parent).glob(f"{name}*")) if Path(parent).is_dir() else 0
    return Path(parent) / (f"{name}-{taken + 1}" if taken else name)


def check_writable(folder: Path) -> None:
    """Make ``folder`` and a file in it, and take both away again: what cannot be written is told before the work.

    Raises:
        OSError: that the folder cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(20, "a file is there, not a folder", str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{os.getpid()}.part"
        trial.touch()
        trial.unlink()
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
