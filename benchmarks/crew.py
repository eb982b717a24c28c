"""The parent's side of the workers: starts them, asks one at a time, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Self, cast

from benchmarks import cores
from benchmarks.systems import SYSTEMS, TUNED, System

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 900.0  # seconds; torch.compile takes tens of them for one net


class WorkerError(Exception):
    """A worker said that it could not, or said nothing any more. ``left_out``: a matter of what is installed."""

    def __init__(self, message: str, *, left_out: bool = False) -> None:
        super().__init__(message)
        self.left_out = left_out


class Asked(Protocol):
    """What rounds are measured with: a process, or several that are asked together."""

    system: str
    threads: int

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        ...

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for its answer, or raise :class:`WorkerError`."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Worker:
    """One system with so many threads in a process of its own; without a system it measures the machine."""

    def __init__(
        self, name: str, places: Sequence[int], system: System | None = None, patience: float = PATIENCE
    ) -> None:
        self.system, self.threads, self.patience = name, len(places), patience
        module, more = (name, {}) if system is None else (system.module, system.environment)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", module, ",".join(map(str, places))],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k not in TUNED} | {**cores.environment(self.threads), **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C is the parent's business, and what a worker starts ends with it. No session of its own: on busy
            # cores Linux deals time out by session, and two ranks would get twice what two threads of a process do.
            process_group=0,
        )

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerError: the worker died, does not answer, or tells why it cannot; a silent one is ended.
        """
        self.send(do, **values)
        if not select.select([self.answers], [], [], self.patience)[0]:
            self.close()
            raise WorkerError(f"it gave no answer within {self.patience:.0f} seconds and was ended")
        return self.receive()

    @property
    def answers(self) -> IO[bytes]:
        """Where its answers come from."""
        return cast(IO[bytes], self.process.stdout)

    def send(self, do: str, **values: Any) -> None:
        """Send a request; :meth:`receive` gives its answer."""
        pipe = cast(IO[bytes], self.process.stdin)
        with contextlib.suppress(OSError):  # it is gone; the empty answer will say so
            pipe.write(json.dumps({"do": do, **values}).encode() + b"\n")
            pipe.flush()

    def receive(self) -> dict[str, Any]:
        """The answer that has come, or raise :class:`WorkerError`."""
        line = self.answers.readline()
        if not line:
            raise WorkerError(self._epitaph())
        answer: dict[str, Any] = json.loads(line)
        for key in ("left_out", "error"):
            if key in answer:
                raise WorkerError(answer[key], left_out=key == "left_out")
        return answer

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def _epitaph(self) -> str:
        code = self.process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return f"its process ended {how}" + (f": {last}" if last else "")

    def close(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(OSError):
                cast(IO[bytes], file).close()


class Crew:
    """Workers by (system, threads). A context: at its end all of them are ended."""

    def __init__(self, places: Sequence[int], systems: Mapping[str, System] = SYSTEMS) -> None:
        self.places, self.systems = places, systems  # cores; a worker with n threads stands on the first n
        self.workers: dict[tuple[str, int], Asked] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def start(self, system: str, threads: int) -> Asked:
        """The worker of this system and number of threads; a new one where there is none."""
        key = system, threads
        if key not in self.workers:
            self.workers[key] = self.make(system, threads)
        return self.workers[key]

    def make(self, system: str, threads: int) -> Asked:
        """A new worker."""
        return Worker(system, self.places[:threads], self.systems.get(system))

    def dismiss(self, worker: Asked) -> None:
        """End a worker that failed."""
        worker.close()
        self.workers.pop((worker.system, worker.threads), None)
