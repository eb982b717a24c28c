"""Worker processes: those that fail are named, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import rounds
from benchmarks.cores import usable
from benchmarks.crew import Crew, Worker, WorkerError
from benchmarks.problem import Problem
from benchmarks.rounds import Contender
from benchmarks.systems import SYSTEMS
from benchmarks.talk import Talk
from wholebatch.kernels import native_available

ROOT = Path(__file__).parent.parent
TINY = ["step", "--shapes", "A", "--threads", "1", "--norms", "none", "--repeats", "3"]
needs_engine = pytest.mark.skipif(not native_available(), reason="the compiled part is missing")


def ended(pid: int, seconds: float = 20.0) -> bool:
    """Whether the process is gone, or a zombie that waits for its parent, within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os, sys; print('out of luck', file=sys.stderr); os._exit(3)", "with exit code 3: out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "by signal SIGKILL"),
    ],
)
def test_a_peer_whose_import_ends_the_process_is_named(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "jax.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Talk() as talk, Crew(usable()[:1]) as crew:
        assert rounds.load(crew, ["jax"], [1], talk) == {}
        assert crew.workers == {}
    assert talk.notes == [f"jax is left out: its process ended {reason}"]


@needs_engine
def test_a_worker_that_dies_between_rounds_is_told_and_the_others_go_on(capsys):
    problem = Problem(16, (4, 8, 3), "none", "sgd", 1)
    dies, lives = Contender("X", "wholebatch", "none", 1), Contender("X", "sklearn", "none", 1)
    turns = []
    with Talk() as talk, Crew(usable()[:1]) as crew:
        assert set(rounds.load(crew, ["wholebatch", "sklearn"], [1], talk)) == {"wholebatch", "sklearn"}
        pids = [worker.process.pid for worker in crew.workers.values()]
        assert [os.sched_getaffinity(pid) for pid in pids] == [{usable()[0]}] * 2

        def kill_in_the_second_round() -> None:
            turns.append(None)
            if len(turns) == 2:
                crew.workers["wholebatch", 1].process.kill()

        timings = rounds.measure(crew, {dies: problem, lives: problem}, 3, talk, kill_in_the_second_round)
    assert list(timings.seconds) == [lives]
    assert all(seconds > 0 for seconds in timings.seconds[lives])
    said = " ".join(capsys.readouterr().err.split())
    assert "wholebatch (shape X, norm none, 1 thread) is left out: its process ended by signal SIGKILL" in said
    assert all(ended(pid) for pid in pids)


def test_a_worker_that_says_nothing_is_ended():
    worker = Worker("sklearn", usable()[:1], SYSTEMS["sklearn"], patience=0.01)
    with pytest.raises(WorkerError, match="gave no answer within"):
        worker.ask("load")
    assert not worker.alive


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_is_left_where_the_run_is_stopped(number: signal.Signals, code: int, tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks", *TINY, "--peers", "sklearn", "--repeats", "1000000"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen([*command, "--json", str(tmp_path / "rows")], cwd=ROOT, stdout=err, stderr=err)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    while not (workers := [int(pid) for pid in children.read_text().split()]):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert all(ended(pid) for pid in workers)
    if number == signal.SIGINT:
        assert (tmp_path / "err").read_text().splitlines()[-1] == "benchmarks: interrupted"
    assert not (tmp_path / "rows").exists()
