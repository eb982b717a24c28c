"""``wholebatch train --processes N`` for tests: its agent and its ranks are forked from the tests' server.

Each rank leaves its process id in the folder, so that a test can do something to it; and a rank can be told to fail.
"""

from __future__ import annotations

import json
import multiprocessing.forkserver
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from forks import server
from tables_for_runs import write_small
from wholebatch.commands.asked import Asked
from wholebatch.commands.ending import Ending

LONG = 120.0  # seconds; guards against hanging, and says nothing about speed
PATIENCE = 2.0  # of the agent, with ranks that do not end


@dataclass
class Launched:
    """A command under way; its output goes to files in ``folder``."""

    folder: Path
    arguments: tuple[str, ...]
    work: Callable[[Path, Asked], Ending | None]
    process: BaseProcess = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.process = server().Process(target=_command, args=(self.folder, self.arguments, self.work))
        self.process.start()

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*([self.process.pid] if self.process.is_alive() else []), *self.alive()]:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        self.process.join()

    def pids(self, attempt: int = 0) -> list[int]:
        """The ranks' process ids, once all of that attempt have begun."""
        ranks = int(self.arguments[self.arguments.index("--processes") + 1])
        files = [self.folder / f"rank{rank}.{attempt}" for rank in range(ranks)]
        if not all(file.exists() for file in files):
            self.wait_for(lambda: all(file.exists() and file.read_text() for file in files))
        return [int(file.read_text()) for file in files]

    def epochs(self) -> int:
        """How many epochs are in the metrics."""
        metrics = self.run / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    @property
    def run(self) -> Path:
        name = "--resume" if "--resume" in self.arguments else "--out"
        return Path(self.arguments[self.arguments.index(name) + 1])

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONG
        while not condition():
            assert self.process.is_alive(), (self.process.exitcode, self.read("stderr"))
            assert time.monotonic() < deadline, self.read("stderr")
            time.sleep(0.002)

    def ended(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr), once it has ended; nobody is left behind."""
        self.process.join(LONG)
        assert self.process.exitcode is not None, self.read("stderr")
        assert self.alive() == []
        return self.process.exitcode, self.read("stdout"), self.read("stderr")

    def read(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""

    def alive(self) -> list[int]:
        """Ranks of all attempts that still run."""
        pids = [int(file.read_text()) for file in self.folder.glob("rank*.*") if file.read_text()]
        return [pid for pid in pids if _runs(pid)]


def options(folder: Path, processes: int, *more: str) -> list[str]:
    """A training of 40 short epochs with all that has a state: dropout, optimizer, schedule, early stopping."""
    table = folder / "table.csv"
    if not table.exists():
        write_small(table, "a", "b", "color", "day", "kind", rows=120)
    return [
        *("train", str(table), "--target", "kind", "--test-fraction", "0.2", "--hidden", "16,16", "--epochs", "40"),
        *("--batch-size", "16", "--patience", "100", "--shards", "2", "--threads", "1", "--quiet"),
        *("--processes", str(processes), *more),
    ]


def plain(folder: Path, asked: Asked) -> Ending | None:
    """What a rank does."""
    from wholebatch.commands.rank import take_part

    name = f"rank{os.environ['RANK']}.{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    (folder / name).write_text(str(os.getpid()))
    return take_part(asked)


def raising(folder: Path, asked: Asked) -> Ending | None:
    """Rank 1 raises in the middle of the fifth epoch, the first time."""
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        _before_epoch(5, partial(_raise, RuntimeError("a bug")))
    return plain(folder, asked)


def always_raising(folder: Path, asked: Asked) -> Ending | None:
    """Rank 1 raises in the fifth epoch, whenever it comes there."""
    if os.environ["RANK"] == "1":
        _before_epoch(5, partial(_raise, RuntimeError("a bug that stays")))
    return plain(folder, asked)


def mistaken(folder: Path, asked: Asked) -> Ending | None:
    """Rank 1 finds something wrong in the fifth epoch."""
    if os.environ["RANK"] == "1":
        _before_epoch(5, partial(_raise, ValueError("this setting is wrong")))
    return plain(folder, asked)


def of_another_version(folder: Path, asked: Asked) -> Ending | None:
    """Rank 1 has other code."""
    if os.environ["RANK"] == "1":
        import wholebatch

        wholebatch.__version__ = "0.0.9"
    return plain(folder, asked)


def draw(seed: str, low: float, high: float) -> float:
    """A number for a moment or a rank, told where the test fails; another one in each run of the tests."""
    value = random.Random(f"{seed}{os.urandom(8).hex()}").uniform(low, high)
    print(f"drawn for {seed}: {value!r}")
    return value


def result(run: Path) -> dict[str, Any]:
    """The files of the model, and the metrics but for the clock's."""
    times = ("seconds", "examples_per_second")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "net": (run / "model.safetensors").read_bytes(),
        "metrics": [{name: value for name, value in row.items() if name not in times} for row in rows],
        "scores": json.loads((run / "report.json").read_text())["scores"],
    }


def _command(folder: Path, arguments: tuple[str, ...], work: Callable[[Path, Asked], Ending | None]) -> None:
    os.chdir(folder)
    begin_here(folder)
    sys.argv = ["wholebatch", *arguments]
    from wholebatch.commands import agent, launching, main

    agent.PATIENCE = PATIENCE
    launching.launch = partial(launching.launch, work=partial(work, folder))  # type: ignore[assignment]
    main(arguments)


def begin_here(folder: Path) -> None:
    """What a process does first that starts ranks."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # The ranks are forked by the server that forked this process: one of its own would import for seconds.
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined, method-assign]
    multiprocessing.forkserver.ensure_running = lambda: None


def _before_epoch(number: int, act: Callable[[], None]) -> None:
    from wholebatch.feedforward import training

    real = training._run_epoch

    def run_epoch(*arguments: Any) -> Any:
        if len(arguments[5].epochs) == number - 1:
            act()
        return real(*arguments)

    training._run_epoch = run_epoch


def _raise(error: Exception) -> None:
    raise error


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
