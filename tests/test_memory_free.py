"""The bytes that are free: of the machine, of this process's limits and of its control groups."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from wholebatch.feedforward import memory
from wholebatch.feedforward.memory import Need, free_bytes, human


def test_free_bytes_are_those_of_the_machine_and_of_the_limits(monkeypatch: pytest.MonkeyPatch):
    free = free_bytes()
    assert free is not None
    assert 0 < free <= 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": 5000, "SwapFree": 300})
    monkeypatch.setattr(memory, "_own_room", lambda: None)
    for groups, expected in (([], 5300), ([7000], 5300), ([7000, 900], 1200)):
        monkeypatch.setattr(memory, "_group_rooms", lambda groups=groups: iter(groups))
        assert free_bytes() == expected
    monkeypatch.setattr(memory, "_own_room", lambda: 70)
    assert free_bytes() == 70
    monkeypatch.setattr(memory, "_machine_room", lambda: None)
    monkeypatch.setattr(memory, "_group_rooms", lambda: iter(()))
    assert free_bytes() == 70
    monkeypatch.setattr(memory, "_own_room", lambda: None)
    assert free_bytes() is None
    Need(net=10**18).check("a net of any size")  # nobody knows, so nobody refuses


def test_the_limit_on_the_address_space_is_free_memory_too():
    before = resource.getrlimit(resource.RLIMIT_AS)
    if before[0] != resource.RLIM_INFINITY:
        pytest.skip("this process has such a limit already")
    assert memory._own_room() is None
    limit = 1 << 45
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        room = memory._own_room()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert room is not None
    assert 0 < room < limit - (1 << 20)


def write_group(folder: Path, version: int, limit: int | str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon {used}\n{prefix}inactive_file {cache}\n{prefix}active_file 1\n")


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups(tmp_path: Path, version: int):
    top = tmp_path / "memory" if version == 1 else tmp_path
    listed = tmp_path / "self"
    listed.write_text("5:cpu,cpuacct:/else\n" + ("4:hugetlb,memory:/a/b\n" if version == 1 else "0::/a/b\n"))

    def rooms() -> list[int]:
        return list(memory._group_rooms(tmp_path, listed))

    assert rooms() == []
    write_group(top, version, 5000, 1000, 49)  # all that a container sees of its group: a root that is its own
    assert rooms() == [4050]
    write_group(top / "a" / "b", version, "max" if version == 2 else 1 << 62, 10, 0)
    write_group(top / "a", version, 800, 900, 9)
    found = rooms()
    assert sorted(found)[:2] == [0, 4050]
    assert len(found) == (2 if version == 2 else 3)  # no limit: "max", or a number beyond all memory
    assert list(memory._group_rooms(tmp_path, tmp_path / "missing")) == []


def test_numbers_are_told_exactly_and_in_units():
    assert human(1023) == "1,023 bytes"
    assert human(1536) == "1,536 bytes (1.5 KiB)"
    assert human(4 * 10**14) == "400,000,000,000,000 bytes (363.8 TiB)"
