"""Which process a rank is, and whether it still is: told to the other ranks of its host, and looked up by them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process of some host.

    Attributes:
        host: the host's boot and the namespace of process ids; equal where ``pid`` means the same. Empty: unknown.
        pid: process id.
        start: when it started, in clock ticks since the boot: another process with this id started later.
    """

    host: str
    pid: int
    start: int

    @classmethod
    def own(cls) -> Process:
        """The calling process."""
        state = _read_state(os.getpid())
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            host = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        except OSError:  # not Linux, or no /proc
            host = ""
        return cls(host if state else "", os.getpid(), state[1] if state else 0)

    def is_near(self, other: Process) -> bool:
        """Whether each can look the other up."""
        return bool(self.host) and self.host == other.host

    def is_gone(self) -> bool:
        """Whether it has ended or was killed. Only for one that is near."""
        state = _read_state(self.pid)
        if state is not None:
            return state[0] in "ZX" or state[1] != self.start
        try:
            os.kill(self.pid, 0)  # sends nothing
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, which /proc may hide
            return False
        return False  # it came between the two looks, or /proc cannot be read


def _read_state(pid: int) -> tuple[str, int] | None:
    """State letter and start time, from /proc/<pid>/stat; see proc(5). None: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold anything
    return fields[0], int(fields[19])
