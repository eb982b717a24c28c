"""Python programs in a process of their own: what a variable of the environment decides is decided once in each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from forks import server


def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the text of a program, warnings being errors, with these variables added to the environment.

    It finds the libraries imported: what they do as they are imported is no matter for it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = server().Process(target=_run, args=(program, arguments, folder, variables))
        process.start()
        try:
            process.join(120)
            assert process.exitcode is not None, "it did not end within 120 s"
        finally:
            process.kill()
        out, err = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([program, *arguments], process.exitcode, out, err)


def run_alone(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """:func:`run` in a Python of its own, which has imported nothing yet; that takes seconds."""
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=240
    )


def _run(program: str, arguments: tuple[str, ...], folder: Path, variables: dict[str, str]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(variables)
    sys.argv = ["-c", *arguments]
    warnings.resetwarnings()
    warnings.simplefilter("error")
    exec(compile(program, "a program", "exec"), {"__name__": "__main__"})
