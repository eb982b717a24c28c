"""Real ranks for tests: ``run_ranks(function, 2)`` calls ``function(rank, ...)`` in two processes of one group.

Nobody needs torchrun or a port: the ranks meet through a file. ``function`` and its arguments are pickled, so it stands
at the top level of a module. It runs inside an initialised gloo group, with one thread for torch::

    def double(rank: int, x: float) -> float:
        return 2 * x + rank

    outcomes = run_ranks(double, 2, 10.0)
    assert [outcome.value for outcome in outcomes] == [20.0, 21.0]     # raises if a rank failed

A fork server has the libraries imported, so that a rank starts in milliseconds. What still runs after ``timeout``
seconds is killed, and only that: the limit guards against hanging, it is no assertion about speed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from forks import server


@dataclass
class Outcome:
    """What became of a rank.

    Attributes:
        result: what the function returned; None where it raised or died.
        error: ``"ValueError: text"`` where it raised.
        exit_code: negative: the signal that killed it; None: it ran into the limit, and was killed for that.
        seconds: from the start of its function to its end.
        output: what it wrote to stdout and stderr.
    """

    result: Any = None
    error: str = ""
    exit_code: int | None = None
    seconds: float = float("nan")
    output: str = ""

    @property
    def value(self) -> Any:
        """The result; AssertionError with all that is known where there is none."""
        assert self.exit_code == 0, f"exit code {self.exit_code}: {self.error}\n{self.output}"
        return self.result


def run_ranks(
    function: Callable[..., Any],
    ranks: int,
    *arguments: Any,
    timeout: float = 60,
    group_timeout: float = 60,
    environment: Sequence[dict[str, str]] | dict[str, str] | None = None,
) -> list[Outcome]:
    """Run ``function(rank, *arguments)`` on every rank; outcomes in rank order.

    Args:
        function: at the top level of a module.
        ranks: how many processes.
        arguments: anything that can be pickled; the same for all.
        timeout: seconds; then what still runs is killed.
        group_timeout: seconds; the process group's own timeout.
        environment: variables to set, for all ranks or one dictionary for each.
    """
    each = list(environment) if isinstance(environment, Sequence) else [environment or {}] * ranks
    with tempfile.TemporaryDirectory() as name:
        folder, pipes, processes = Path(name), [], []
        for rank in range(ranks):
            ours, theirs = multiprocessing.Pipe(duplex=False)
            job = pickle.dumps((function, arguments))
            process = server().Process(
                target=_live, args=(rank, ranks, job, folder, theirs, group_timeout, each[rank]), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        outcomes = [Outcome() for _ in range(ranks)]
        try:
            _collect(outcomes, pipes, processes, time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        for rank, outcome in enumerate(outcomes):
            written = folder / f"output{rank}"
            outcome.output = written.read_text(errors="replace") if written.exists() else ""
    return outcomes


def _collect(
    outcomes: list[Outcome], pipes: list[Connection], processes: Sequence[BaseProcess], deadline: float
) -> None:
    running: dict[int, int] = {process.sentinel: rank for rank, process in enumerate(processes)}
    while running and (left := deadline - time.monotonic()) > 0:
        # A pipe holds 64 KiB: it is read as results come, or their senders would never end.
        for ready in wait([*running, *(pipe for pipe in pipes if not pipe.closed)], left):
            if isinstance(ready, Connection):
                _receive(outcomes[pipes.index(ready)], ready)
            elif isinstance(ready, int):
                rank = running.pop(ready)
                processes[rank].join()
                outcomes[rank].exit_code = processes[rank].exitcode
    for rank, pipe in enumerate(pipes):
        while not pipe.closed and pipe.poll():
            _receive(outcomes[rank], pipe)


def _receive(outcome: Outcome, pipe: Connection) -> None:
    try:
        outcome.result, outcome.error, outcome.seconds = pickle.loads(pipe.recv_bytes())
    except EOFError:
        pipe.close()


def _live(
    rank: int, ranks: int, job: bytes, folder: Path, pipe: Connection, group_timeout: float, environment: dict[str, str]
) -> None:
    written = os.open(folder / f"output{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.environ.update(environment)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=group_timeout))
    function, arguments = pickle.loads(job)
    start = time.monotonic()
    try:
        result = function(rank, *arguments)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        pipe.send_bytes(pickle.dumps((None, text, time.monotonic() - start)))
        raise
    # Not by the connection's own pickler: it would send tensors as handles of memory that goes with this process.
    pipe.send_bytes(pickle.dumps((result, "", time.monotonic() - start)))
