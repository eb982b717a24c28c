"""torch's elastic agent, with what a person wants of it: what befell which rank, and no restart after a mistake.

When a rank is gone, torch's agent ends the others at once. Here they get some seconds, in which each says why it stops;
what still runs then hangs, and is killed: it has nothing to save. Then it is decided whether to start all ranks again.

Ranks that are done end with the exit code 0. torch's agent has them wait for each other at an event of
`multiprocessing`, which is locked for ever where one is killed as it waits there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs

from wholebatch.commands.ending import Ending
from wholebatch.commands.trouble import Lost, Trouble

PATIENCE = 5.0  # seconds that ranks get to end by themselves once one of them is gone
INTERVAL = 0.05  # seconds between two looks at the ranks


class Agent(LocalElasticAgent):
    """Starts the ranks, and starts them again as long as ``decide`` says so.

    Args:
        decide: is told what happened to the ranks; whether to start them again.
    """

    def __init__(
        self, spec: WorkerSpec, logs_specs: LogsSpecs, start_method: str, decide: Callable[[Trouble], bool]
    ) -> None:
        super().__init__(spec, logs_specs, start_method)
        self._decide = decide

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        killed: set[int] = set()
        codes = [process.exitcode for process in self._processes()]
        if all(code == 0 for code in codes):
            return RunResult(WorkerState.SUCCEEDED, dict.fromkeys(range(len(codes))))
        if any(code not in (None, 0) for code in codes):
            killed = self._end_the_rest()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED and not self._decide(self._trouble(killed)):
            self._remaining_restarts = 0
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *more: Any, **named: Any) -> None:
        for process in self._processes():
            if process.is_alive():
                _send(process, death_sig)
        self._end_the_rest()
        super()._shutdown(death_sig, *more, **named)

    def _processes(self) -> list[BaseProcess]:
        started = getattr(self._pcontext, "_pc", None)
        return [] if started is None else list(started.processes)

    def _end_the_rest(self) -> set[int]:
        """Wait until all ranks have ended, and kill those that do not: returns which."""
        processes, deadline = self._processes(), time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = {rank for rank, process in enumerate(processes) if process.is_alive()}
        for rank in hanging:
            _send(processes[rank], signal.SIGKILL)
            processes[rank].join(PATIENCE)
        return hanging

    def _trouble(self, killed: set[int]) -> Trouble:
        files = {} if self._pcontext is None else self._pcontext.error_files
        return Trouble(
            [
                Lost(rank, process.pid, process.exitcode, rank in killed, Ending.read(files.get(rank, "")))
                for rank, process in enumerate(self._processes())
            ]
        )


def _send(process: BaseProcess, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if process.pid is not None:
            os.kill(process.pid, number)
