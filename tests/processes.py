"""The real command in a real process, forked from one that has the libraries imported."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from forks import server


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


def start(folder: Path, *arguments: str, most_bytes: int | None = None, **variables: str) -> Command:
    """Run ``wholebatch arguments``, with these variables added to the environment.

    With ``most_bytes`` the system lets it make no file larger than that.
    """
    process = server().Process(target=_run, args=(folder, arguments, most_bytes, variables))
    process.start()
    return Command(process, folder)


def _run(folder: Path, arguments: tuple[str, ...], most_bytes: int | None, variables: dict[str, str]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    os.environ.update(variables)
    sys.argv = ["wholebatch", *arguments]
    from wholebatch.commands import main

    main(arguments)
