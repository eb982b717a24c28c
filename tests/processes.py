"""The real command in a real process, without paying for imports each time.

A fork server imports the libraries once, which takes seconds, and forks a process per command.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ["wholebatch.runs", "wholebatch.commands.train", "wholebatch.commands.predict", "sklearn.model_selection"]


@dataclass
class Command:
    """A running ``wholebatch`` command; its output goes to files."""

    process: BaseProcess
    folder: Path

    def wait(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()

    def kill(self) -> None:
        """SIGKILL: nothing in the process can answer it."""
        self.process.kill()
        self.process.join()


def start(folder: Path, *arguments: str, most_bytes: int | None = None) -> Command:
    """Run ``wholebatch arguments``; with ``most_bytes`` the system lets it make no file larger than that."""
    process = _server().Process(target=_run, args=(folder, arguments, most_bytes))
    process.start()
    return Command(process, folder)


def example_server() -> ForkServerContext:
    """Starts processes that have the libraries imported."""
    return _server()


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _run(folder: Path, arguments: tuple[str, ...], most_bytes: int | None) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv = ["wholebatch", *arguments]
    from wholebatch.commands import main

    main(arguments)
