"""``wholebatch train`` over processes as a person uses it: what it leaves, says and refuses, and who can reach it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launched import LONG, Launched, of_another_version, options, plain, result
from wholebatch.kernels import native_available
from wholebatch.runs import Recording

pytestmark = pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing")


@pytest.fixture(scope="module")
def four_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by one process that holds four shards."""
    folder = tmp_path_factory.mktemp("four")
    train(folder, folder, 1)
    return folder


def arguments(table: Path, processes: int, *more: str) -> tuple[str, ...]:
    """A training of 8 epochs in four shards."""
    return (*options(table, processes), "--shards", "4", "--epochs", "8", *more)


def train(table: Path, folder: Path, processes: int, *more: str) -> Launched:
    """Train into ``folder / "run"``; it goes well and says nothing but the result."""
    with Launched(
        folder / "command", arguments(table, processes, "--out", str(folder / "run"), *more), plain
    ) as command:
        code, out, err = command.ended()
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == f"report {folder / 'run' / 'report.html'}"
    return command


@pytest.mark.parametrize(("processes", "threads"), [(2, 2), (4, 1)])
def test_any_number_of_processes_gives_the_same(four_shards: Path, tmp_path: Path, processes: int, threads: int):
    train(four_shards, tmp_path, processes, "--threads", str(threads))
    assert result(tmp_path / "run") == result(four_shards / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (settings["shards"], settings["sync"], settings["group_size"]) == (4, "all", None)
    told = Recording.load(tmp_path / "run" / "report.json").how["processes"]
    assert told.startswith(f"{processes}, which share 4 shards of the mini-batch; ")


def test_other_processes_go_on(four_shards: Path, tmp_path: Path):
    """Stopped with two processes, gone on with one and with four: as if it had never been stopped."""
    out = tmp_path / "run"
    for number, (processes, given) in enumerate([(2, ("--out", str(out))), (1, None), (4, None)]):
        words = given or ("--resume", str(out))
        line = arguments(four_shards, processes, *words) if given else ("train", *words, "--processes", str(processes))
        with Launched(tmp_path / f"command{number}", (*line, "--quiet"), plain) as command:
            if number < 2:
                reach(command, command.epochs() + 2)
                assert command.process.pid is not None
                os.kill(command.process.pid, signal.SIGINT)
                assert command.ended()[0] == 130
            else:
                assert command.ended()[::2] == (0, "")
    assert result(out) == result(four_shards / "run")


def reach(command: Launched, epochs: int) -> None:
    command.wait_for(lambda: command.epochs() >= epochs)


def test_shards_that_cannot_be_dealt(four_shards: Path, tmp_path: Path):
    line = arguments(four_shards, 3, "--out", str(tmp_path / "run"))
    check_refused(line, tmp_path, "4 shards cannot be dealt to 3 ranks")
    line = ("train", "--resume", str(four_shards / "run"), "--processes", "3")
    check_refused(line, tmp_path, "4 shards cannot be dealt to 3 ranks")


def test_a_run_whose_result_depends_on_the_processes(four_shards: Path, tmp_path: Path):
    train(four_shards, tmp_path, 2, "--sync", "none", "--epochs", "2")
    line = ("train", "--resume", str(tmp_path / "run"), "--processes", "4")
    check_refused(line, tmp_path, "with 2 processes, not with 4", "go on with --processes 2")


def test_ranks_of_different_versions(four_shards: Path, tmp_path: Path):
    line = arguments(four_shards, 2, "--out", str(tmp_path / "run"))
    check_refused(line, tmp_path, "rank 1 has wholebatch 0.0.9, rank 0 has ", work=of_another_version)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--target", "knid"), "did you mean 'kind'"),
        (("--learning-rate", "1e30"), "not finite"),
        (("--sync", "group", "--group-size", "3"), "groups of 3"),
    ],
)
def test_a_mistake_is_told_once(four_shards: Path, tmp_path: Path, wrong: tuple[str, ...], words: str):
    line = arguments(four_shards, 2, *wrong, "--out", str(tmp_path / "run"))
    check_refused(line, tmp_path, words)
    assert not (tmp_path / "run").exists()


def check_refused(line: tuple[str, ...], folder: Path, *words: str, work: Callable = plain) -> None:
    """One sentence, and nobody starts again."""
    with Launched(folder / f"refused{len(list(folder.iterdir()))}", line, work) as command:
        code, out, err = command.ended()
        assert (code, out) == (1, ""), err
        assert err.startswith("wholebatch: ")
        assert err.count("\n") == 1, err
        for word in words:
            assert word in err


def test_nobody_listens_but_on_the_loopback_interface(four_shards: Path, tmp_path: Path):
    line = arguments(four_shards, 2, "--epochs", "500", "--out", str(tmp_path / "run"))
    with Launched(tmp_path / "command", line, plain) as command:
        pids = command.pids()
        command.wait_for(lambda: command.epochs() >= 1)
        assert command.process.pid is not None
        addresses = [address for pid in (command.process.pid, *pids) for address in listening(pid)]
    assert len(addresses) >= 3, "the store of the agent, and gloo of each rank"
    assert {address.rpartition(":")[0] for address in addresses} <= {"0100007F", "00000000000000000000000001000000"}


def listening(pid: int) -> list[str]:
    """The addresses, in the system's hexadecimal, on which a process takes connections."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(handle))
        except OSError:
            continue
    lines = [
        fields
        for name in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:])
    ]
    return [fields[1] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes]


def test_the_command_in_processes_of_its_own(four_shards: Path, tmp_path: Path):
    """No server of the tests': the agent starts one itself. Killed, it leaves nobody behind; the run goes on later."""
    out = tmp_path / "run"
    line = [sys.executable, "-m", "wholebatch", *arguments(four_shards, 2, "--epochs", "8", "--out", str(out))]
    with (tmp_path / "said").open("wb") as said:
        agent = subprocess.Popen(line, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + LONG
        while not (out / "checkpoint.safetensors").exists():
            assert agent.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        others = descendants(agent.pid)
        assert len(others) >= 3, "a fork server, and two ranks"
    finally:
        agent.kill()
        agent.wait()
    while alive := [pid for pid in others if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.01)
    with Launched(
        tmp_path / "resumed", ("train", "--resume", str(out), "--processes", "2", "--quiet"), plain
    ) as resumed:
        assert resumed.ended()[::2] == (0, "")
    assert result(out) == result(four_shards / "run")


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, queue = [], [pid]
    while queue:
        above = queue.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found += below
        queue += below
    return found


def test_torchrun(four_shards: Path, tmp_path: Path):
    out = tmp_path / "run"
    given = list(arguments(four_shards, 2, "--out", str(out)))
    del given[given.index("--processes") : given.index("--processes") + 2]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "wholebatch", *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report {out / 'report.html'}"
    assert "wholebatch: " not in done.stderr
    assert "Error" not in done.stderr
    assert result(out) == result(four_shards / "run")
