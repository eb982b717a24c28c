"""Which processes are still there."""

from __future__ import annotations

from pathlib import Path


def group_of(leader: int) -> list[int]:
    """Processes of the process group of ``leader``, from /proc/PID/stat."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            state, _, pgrp = text[text.rindex(")") + 2 :].split()[:3]
            if int(pgrp) == leader and state != "Z":
                found.append(int(entry.name))
    return found
