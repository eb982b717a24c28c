"""Ctrl-C in the first moments, while libraries are imported: here and in the process that forks ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wholebatch.commands import edge

# Imports that stop for nothing, as numpy's do: an exception in their middle is taken for a missing feature.
STUBBORN = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
except BaseException:
    pass
"""
SERVED = """
import multiprocessing, os
from wholebatch.forks import start_server
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    start_server(context, ["interrupted"])
    process = context.Process(target=os.getpid)
    process.start()
    process.join()
    print(process.exitcode)
"""


def run_beside(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the modules in ``folder`` before all others, and Ctrl-C as on a terminal."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.skipif(os.name != "posix", reason="signals to a process by its number")
@pytest.mark.parametrize("arguments", [["train", "iris", "--target", "species"], ["compare", "iris"], ["plan"]])
def test_within_the_import_of_torch_it_ends_at_once(arguments: list[str], tmp_path: Path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(STUBBORN)
    done = run_beside(tmp_path, "-m", "wholebatch", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (edge.INTERRUPTED, "", "wholebatch: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["torch"]


@pytest.mark.skipif(os.name != "posix", reason="there is no fork server")
def test_the_server_that_forks_ranks_does_not_see_it(tmp_path: Path):
    (tmp_path / "interrupted.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "program.py").write_text(SERVED)
    done = run_beside(tmp_path, "program.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_the_handler_is_given_back(capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        edge.main(["report", "nowhere"])
    assert signal.getsignal(signal.SIGINT) is before
    assert "nowhere does not exist" in capsys.readouterr().err
