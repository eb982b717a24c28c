"""What options accept: comma-separated lists whose mistakes name the known values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks import cores


class Names(click.ParamType):
    """``A,B``: some of the known names, in the known order; ``none`` for none of them where ``may_be_none``."""

    def __init__(self, what: str, known: Sequence[str], *, may_be_none: bool = False) -> None:
        self.name, self.what, self.known, self.may_be_none = what, what, known, may_be_none

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = [name.strip() for name in value.split(",")]
        if self.may_be_none and names == ["none"]:
            return ()
        for name in names:
            if name not in self.known:
                more = ", or none alone" if self.may_be_none else ""
                self.fail(f"unknown {self.what} {name!r}; known are {', '.join(self.known)}{more}", param, ctx)
        return tuple(name for name in self.known if name in names)


class Threads(click.ParamType):
    """``1,2``: numbers of threads, none above the cores that can be used."""

    name = "threads"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        counts: set[int] = set()
        for text in value.split(","):
            if not text.strip().isdecimal() or int(text) < 1:
                self.fail(
                    f"{text.strip()!r} is no number of threads; give whole numbers of at least 1, say 1,2", param, ctx
                )
            counts.add(int(text))
        most = len(cores.usable())
        if max(counts) > most:
            self.fail(
                f"{max(counts)} threads were asked for, and {most} cores can be used here; ask for fewer", param, ctx
            )
        return tuple(sorted(counts))


class OutFile(click.Path):
    """A file to write at the end of a run; a folder that is not there is told at its beginning."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"the folder of {str(path)!r} is not there; make it first", param, ctx)
        return path


class Cores(click.ParamType):
    """``0,2``: cores by number, each once, all of them usable."""

    name = "cores"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        known = cores.usable()
        found: list[int] = []
        for text in value.split(","):
            if not text.strip().isdecimal() or int(text) not in known or int(text) in found:
                usable = ", ".join(map(str, known))
                self.fail(f"{text.strip()!r} cannot be used; give each core once, out of {usable}", param, ctx)
            found.append(int(text))
        return tuple(found)


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
