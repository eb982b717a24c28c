"""Ranks that are killed, hang or fail: the others stop and say why, all start again, and the result is the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from launched import Launched, always_raising, draw, mistaken, options, plain, raising, result
from wholebatch.kernels import native_available

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc"),
    pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing befell, by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Launched(folder, (*options(folder, 1), "--out", str(folder / "run")), plain) as command:
        assert command.ended()[::2] == (0, "")
    return folder


def launch(undisturbed: Path, folder: Path, *more: str, work: Any = plain, out: Path | None = None) -> Launched:
    arguments = options(undisturbed, 2, "--timeout", "20", "--out", str(out or folder / "run"), *more)
    return Launched(folder / "command", tuple(arguments), work)


def reach(command: Launched, epochs: float) -> None:
    """Wait until the run has come so far, and a moment more for the fraction."""
    command.wait_for(lambda: command.epochs() >= int(epochs))
    time.sleep(epochs % 1 * 0.01)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; returns what takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while os.statvfs(disk).f_bavail:
            file.write(bytes(os.statvfs(disk).f_bsize))
    return ballast


def check_restarted(command: Launched, undisturbed: Path, *words: str) -> None:
    """It said what happened, and ended as if nothing had."""
    code, out, err = command.ended()
    assert code == 0, err
    assert out.splitlines()[-1] == f"report {command.run / 'report.html'}"
    assert err.count("all ranks start again") == 1, err
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert result(command.run) == result(undisturbed / "run")
    assert not list(command.run.glob(".*.part"))
    pids = [command.process.pid, *command.pids(0), *command.pids(1)]
    assert not [name for name in os.listdir("/dev/shm") if any(str(pid) in name for pid in pids)]


@pytest.mark.parametrize("number", range(3))
def test_a_rank_that_is_killed(undisturbed: Path, tmp_path: Path, number: int):
    rank, moment = int(draw("rank", 0, 2)), draw("moment", 1, 36)
    with launch(undisturbed, tmp_path) as command:
        pids = command.pids()
        reach(command, moment)
        os.kill(pids[rank], signal.SIGKILL)
        check_restarted(command, undisturbed, f"rank {rank} (process {pids[rank]}) was killed by SIGKILL")
        assert f"  rank {1 - rank}: " in command.read("stderr")
        assert f"rank {rank}: process {pids[rank]} is gone" in command.read("stderr")


def test_a_rank_that_is_killed_while_the_report_is_written(undisturbed: Path, tmp_path: Path):
    """The other one is done by then, and has ended; both start again for what is left."""
    with launch(undisturbed, tmp_path) as command:
        pids = command.pids()
        command.wait_for(lambda: (command.run / "model.json").exists())
        os.kill(pids[0], signal.SIGKILL)
        check_restarted(command, undisturbed, f"rank 0 (process {pids[0]}) was killed by SIGKILL", "after epoch 40")


def test_a_rank_that_hangs(undisturbed: Path, tmp_path: Path):
    rank, moment = int(draw("rank", 0, 2)), draw("moment", 1, 36)
    with launch(undisturbed, tmp_path, "--timeout", "1.5") as command:
        pids = command.pids()
        reach(command, moment)
        os.kill(pids[rank], signal.SIGSTOP)
        check_restarted(command, undisturbed, f"rank {rank} (process {pids[rank]}) did not answer and was killed")
        # Which one is told where it was stopped outside of a meeting.
        assert re.search(rf"(rank {rank}|another rank) did not come within 1\.5 s", command.read("stderr"))


def test_a_rank_that_raises(undisturbed: Path, tmp_path: Path):
    with launch(undisturbed, tmp_path, work=raising) as command:
        pids = command.pids()
        check_restarted(command, undisturbed, f"rank 1 (process {pids[1]}) raised RuntimeError: a bug; all ranks")
        assert "rank 1 raised RuntimeError: a bug" in command.read("stderr").splitlines()[1]


def test_faults_that_do_not_cease(undisturbed: Path, tmp_path: Path):
    """Four times in a row without a new epoch: then it is told what was kept, and how to go on."""
    with launch(undisturbed, tmp_path, work=always_raising) as command:
        code, out, err = command.ended()
        assert (code, out) == (1, "")
        assert err.count("all ranks start again after epoch 4") == 3
        last = err.splitlines()[-1]
        assert "this is fault 4 in a row: 4 of 40 epochs are kept" in last
        assert f"wholebatch train --resume {command.run}" in last
    arguments = ("train", "--resume", str(command.run), "--processes", "1", "--quiet")
    with Launched(tmp_path / "resumed", arguments, plain) as resumed:
        assert resumed.ended()[::2] == (0, "")
    assert result(command.run) == result(undisturbed / "run")


def test_a_mistake_is_not_tried_again(undisturbed: Path, tmp_path: Path):
    with launch(undisturbed, tmp_path, work=mistaken) as command:
        code, out, err = command.ended()
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert re.match(r"wholebatch: this setting is wrong; [34] of 40 epochs are kept in .* --resume ", err)


def test_a_full_disk(undisturbed: Path, tmp_path: Path):
    """The checkpoint cannot be written; once there is room again, the run goes on from the one before."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with launch(undisturbed, tmp_path, out=disk / "run") as command:
            command.wait_for(lambda: command.epochs() >= 3)
            ballast = fill(disk)
            command.wait_for(lambda: "start again" in command.read("stderr"))
            ballast.unlink()
            check_restarted(command, undisturbed, "no space left on device", "rank 0 (process", "could not go on")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all(undisturbed: Path, tmp_path: Path, number: signal.Signals, code: int):
    with launch(undisturbed, tmp_path) as command:
        pids = command.pids()
        command.wait_for(lambda: command.epochs() >= 2)
        assert command.process.pid is not None
        for pid in [command.process.pid, *pids]:  # as a terminal does
            os.kill(pid, number)
        ended, out, err = command.ended()
        assert (ended, out) == (code, ""), err
        assert err.count("\n") == 1, err
        assert err.startswith("wholebatch: interrupted: ")
        assert f"go on with: wholebatch train --resume {command.run}" in err
        assert not list(command.run.glob(".*.part"))


def test_the_agent_is_killed(undisturbed: Path, tmp_path: Path):
    """Nobody looks after the ranks any more: they end, and the run goes on from where it was."""
    with launch(undisturbed, tmp_path) as command:
        command.pids()
        command.wait_for(lambda: command.epochs() >= 2)
        command.process.kill()
        command.process.join()
        deadline = time.monotonic() + 60
        while command.alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    arguments = ("train", "--resume", str(command.run), "--processes", "2", "--quiet")
    with Launched(tmp_path / "resumed", arguments, plain) as resumed:
        assert resumed.ended()[::2] == (0, "")
    assert result(command.run) == result(undisturbed / "run")
