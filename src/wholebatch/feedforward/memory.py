"""What memory is free, and the refusal of what does not fit, before any of it is taken.

A system that lends more memory than it has kills the process that uses it, without a word. So what a net will take is
added up from its sizes alone (``footprint.py``), and compared with what is free.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

# Below this nobody is asked what is free: reading the system's files takes 0.1 ms, as long as a small prediction.
SMALL = 1 << 20
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True)
class Need:
    """Bytes that will be taken, by what a person can change.

    Args:
        net: what grows with the net alone: parameters, gradients, optimizer state.
        batch: what grows with the mini-batch too: sums, their gradients, tables of moments.
        table: what grows with the table: copies of it in the net's dtype, predictions.
        rows: of the mini-batch.
        dtype: of the net.
    """

    net: int = 0
    batch: int = 0
    table: int = 0
    rows: int = 0
    dtype: torch.dtype = torch.float32

    def plus(self, *, net: int = 0, batch: int = 0, table: int = 0) -> Need:
        """The same and more."""
        return replace(self, net=self.net + net, batch=self.batch + batch, table=self.table + table)

    def times(self, processes: int) -> Need:
        """What so many processes need that each need this."""
        return replace(self, net=processes * self.net, batch=processes * self.batch, table=processes * self.table)

    @property
    def total(self) -> int:
        return self.net + self.batch + self.table

    def remedy(self) -> str:
        """What to change, the largest part first, none that would not help."""
        remedies = {
            "fewer or narrower hidden layers": self.net,
            f"a smaller batch size (it is {self.rows:,})": self.batch if self.rows > 1 else 0,
            "fewer rows at a time": self.table,
        }
        large = [name for name, part in remedies.items() if part > self.total / 10]
        useful = sorted(large, key=lambda name: -remedies[name])
        return ", ".join(useful + (["float32 in place of float64"] if self.dtype == torch.float64 else []))

    def check(self, what: str) -> None:
        """Refuse what does not fit; ``what`` begins the sentence.

        Raises:
            ValueError: naming the bytes needed and free, and the remedy.
        """
        if self.total < SMALL:
            return
        free = free_bytes()
        if free is not None and self.total > free:
            raise ValueError(
                f"{what} needs {human(self.total)} of memory, {human(free)} are free; choose {self.remedy()}"
            )


def human(count: int) -> str:
    """``1,536 bytes (1.5 KiB)``."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count:,} bytes" + (f" ({size:,.1f} {UNITS[unit]})" if unit else "")


def free_bytes() -> int | None:
    """Bytes that this process can still take: of the machine (with swap), of its control groups, of its own limit.

    None where the system tells nothing.
    """
    shared = [room for room in (_machine_room(), *_group_rooms()) if room is not None]
    rooms = [min(shared) + _meminfo().get("SwapFree", 0)] if shared else []
    own = _own_room()
    return min(rooms + ([] if own is None else [own]), default=None)


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}


def _machine_room() -> int | None:
    """What the kernel says is available; elsewhere than on Linux all that is built in, which is no less."""
    available = _meminfo().get("MemAvailable")
    if available is not None:
        return available
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _group_rooms(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What each control group around this process leaves, in both versions of the interface.

    In a container the group's path is often the host's and not to be found; the root that is mounted is then its group.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, prefix = root, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit, usage, prefix = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            room = _group_room(folder, limit, usage, prefix)
            if room is not None:
                yield room
            if folder == top:
                break


def _group_room(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    """A group's limit less what it uses; its file cache is given back when memory is wanted."""
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {pair[0]: int(pair[1]) for pair in pairs}
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    cache = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    return max(0, int(most) - used + cache)


def _own_room() -> int | None:
    """What ``ulimit -v`` leaves."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return most
    return max(0, most - pages * resource.getpagesize())
