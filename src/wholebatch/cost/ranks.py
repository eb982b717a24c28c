"""Ranks of this host: the same function in several processes of one process group, over loopback, one thread each.

They end with whoever started them, however that ends: each watches its pipe to the starter, which the system closes.
Ctrl-C is the starter's alone, which takes them with it at once: they ignore it, and so does what they are forked from.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from wholebatch.forks import start_server

PATIENCE = 180.0
"""Seconds after which ranks that gave no result, and told nothing, are ended."""
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}
_own: list[Connection] = []  # of a rank: its pipe to the starter


class RankError(RuntimeError):
    """A rank failed, died or gave no result; all were ended."""


def run_ranks(
    function: Callable[..., Any],
    ranks: int,
    *arguments: Any,
    patience: float = PATIENCE,
    told: Callable[[Any], None] = lambda value: None,
) -> list[Any]:
    """``function(rank, *arguments)`` in each of ``ranks`` processes; the results by rank.

    Args:
        function: at the top level of a module. An initialised gloo group is there when it is called.
        ranks: how many processes.
        arguments: what can be sent to a process; the same for all.
        patience: seconds without a word of any rank.
        told: called here with whatever a rank hands to :func:`tell`.

    Raises:
        RankError: with the first rank that failed, and its reason.
    """
    context = _context(function.__module__)
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    with tempfile.TemporaryDirectory(prefix="wholebatch-") as folder:
        try:
            for rank in range(ranks):
                ours, theirs = context.Pipe()
                pipes.append(ours)
                job = (function, arguments, rank, ranks, folder, theirs)
                process = context.Process(target=_live, args=job, daemon=True, name=f"wholebatch rank {rank}")
                processes.append(process)
                process.start()
                theirs.close()
            return _collect(pipes, patience, told)
        finally:
            for process in processes:
                if process.pid is not None and process.is_alive():
                    process.kill()
            for pipe in pipes:
                pipe.close()
            for process in processes:
                if process.pid is not None:
                    process.join()


def tell(value: Any) -> None:
    """In a rank: hand something to the starter while the function goes on; its progress, say."""
    for pipe in _own:
        pipe.send(("told", value))


def _context(module: str) -> Any:
    """How processes are made: forked from one that has imported ``module``, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    start_server(context, [module])
    return context


def _collect(pipes: list[Connection], patience: float, told: Callable[[Any], None]) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + patience
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            late = ", ".join(str(rank) for rank in range(len(pipes)) if rank not in results)
            raise RankError(f"rank {late} of {len(pipes)} gave no result in time; all were ended")
        died, failed = list[int](), list[tuple[int, str]]()
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pipes.index(pipe)
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                died.append(rank)
                continue
            if kind == "failed":
                failed.append((rank, value))
            elif kind == "told":
                deadline = time.monotonic() + patience
                told(value)
            else:
                results[rank] = value
        if died:  # those that failed at the same time failed for that
            raise RankError(f"rank {died[0]} of {len(pipes)} died; all were ended")
        if failed:
            raise RankError(f"rank {failed[0][0]} of {len(pipes)} failed ({failed[0][1]}); all were ended")
    return [results[rank] for rank in range(len(pipes))]


def _live(
    function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, ranks: int, folder: str, pipe: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _own.append(pipe)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True, name="wholebatch starter").start()
    if sys.platform in _LOOPBACK:
        os.environ["GLOO_SOCKET_IFNAME"] = _LOOPBACK[sys.platform]
    import torch
    import torch.distributed as dist

    from wholebatch.sharing import MeetingError

    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(Path(folder) / "store"), ranks)  # type: ignore[attr-defined]
        limit = timedelta(seconds=PATIENCE)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
        result = function(rank, *arguments)
        dist.barrier()  # nobody leaves while another may still look for it
        pipe.send(("result", result))
    except BaseException as error:
        said = error.cause if isinstance(error, MeetingError) else str(error)  # the whole of it is a table
        pipe.send(("failed", " ".join(f"{type(error).__name__}: {said}".split())[:400]))
    # Taking torch and its group down could wait for others.
    os._exit(0)


def _end_with(pipe: Connection) -> None:
    """Ends this process when its starter has gone; nothing is ever sent to it."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
