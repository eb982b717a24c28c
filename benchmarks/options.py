"""What options accept: comma-separated lists whose mistakes name the known values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import click

from benchmarks import cores

T = TypeVar("T")


class Listed(click.ParamType[tuple[T, ...]]):
    """A comma-separated list, read by :meth:`read`, which raises ValueError with what is wrong with it."""

    def read(self, parts: list[str]) -> tuple[T, ...]:
        raise NotImplementedError

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[T, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return self.read([part.strip() for part in str(value).split(",")])
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Names(Listed[str]):
    """``A,B``: some of the known names, in the known order; ``none`` for none of them where ``may_be_none``."""

    def __init__(self, what: str, known: Sequence[str], *, may_be_none: bool = False) -> None:
        self.name, self.what, self.known, self.may_be_none = what, what, known, may_be_none

    def read(self, parts: list[str]) -> tuple[str, ...]:
        if self.may_be_none and parts == ["none"]:
            return ()
        for part in parts:
            if part not in self.known:
                more = ", or none alone" if self.may_be_none else ""
                raise ValueError(f"unknown {self.what} {part!r}; known are {', '.join(self.known)}{more}")
        return tuple(name for name in self.known if name in parts)


class Threads(Listed[int]):
    """``1,2``: numbers of threads, none above the cores that can be used."""

    name = "threads"

    def read(self, parts: list[str]) -> tuple[int, ...]:
        for part in parts:
            if not part.isdecimal() or int(part) < 1:
                raise ValueError(f"{part!r} is no number of threads; give whole numbers of at least 1, say 1,2")
        counts, most = {int(part) for part in parts}, len(cores.usable())
        if max(counts) > most:
            raise ValueError(f"{max(counts)} threads were asked for, and {most} cores can be used here; ask for fewer")
        return tuple(sorted(counts))


class Cores(Listed[int]):
    """``0,2``: cores by number, each once, all of them usable."""

    name = "cores"

    def read(self, parts: list[str]) -> tuple[int, ...]:
        known, found = cores.usable(), list[int]()
        for part in parts:
            if not part.isdecimal() or int(part) not in known or int(part) in found:
                usable = ", ".join(map(str, known))
                raise ValueError(f"{part!r} cannot be used; give each core once, out of {usable}")
            found.append(int(part))
        return tuple(found)


class OutFile(click.Path):
    """A file to write at the end of a run; a folder that is not there is told at its beginning."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"the folder of {str(path)!r} is not there; make it first", param, ctx)
        return path


def choose_places(threads: Sequence[int], given: Sequence[int] | None) -> tuple[int, ...]:
    """The cores that the most threads stand on: those given, or the first usable ones.

    Raises:
        click.UsageError: fewer cores were given than there are threads.
    """
    most = max(threads)
    if given is None:
        return tuple(cores.usable()[:most])
    if len(given) < most:
        raise click.UsageError(f"--cores names {len(given)} cores, and --threads asks for {most}; name as many")
    return tuple(given[:most])


def default_threads() -> str:
    """``1,2``, or ``1`` where there is one core."""
    return ",".join(map(str, range(1, min(2, len(cores.usable())) + 1)))


def every_thread() -> str:
    """``1,2,4,…``: powers of two up to the cores, and the cores."""
    most = len(cores.usable())
    counts = {1 << i for i in range(most.bit_length()) if 1 << i <= most} | {most}
    return ",".join(map(str, sorted(counts)))
