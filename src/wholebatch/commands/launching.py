"""``--processes N``: the ranks of one host, started by torch's elastic agent, and started again after a fault.

The ranks are forked by a server that has the libraries imported, while this process imports what the agent needs: so
they start together with it, and again within moments. They end when this process does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context, reduction
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wholebatch.commands import rank
from wholebatch.commands.asked import Asked, kept
from wholebatch.commands.edge import INTERRUPTED, Ended
from wholebatch.commands.ending import Ending
from wholebatch.forks import start_server

if TYPE_CHECKING:
    from wholebatch.commands.trouble import Trouble

MOST_FAULTS = 3  # in a row, with no epoch finished between
PAUSE = 2.0  # seconds before the ranks start again where a disk was full; twice as many each time
PRELOADED = [
    "wholebatch.runs.session",
    "wholebatch.commands.progress",
    "wholebatch.commands.launching",
    "wholebatch.sharing.messages",
    "torch.distributed.elastic.multiprocessing",
]

Work = Callable[[Asked], Ending | None]


def launch(asked: Asked, processes: int, work: Work = rank.take_part) -> None:
    """Do what was asked with so many ranks.

    Args:
        work: what each rank does; a test's own does it with a fault.

    Raises:
        click.ClickException: with the exit code of the mistake, or 1 where faults do not cease, or 130 for Ctrl-C.
    """
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # the ranks say themselves what befell them
    start_server(get_context(method), PRELOADED)
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException

    from wholebatch.commands.agent import INTERVAL, Agent
    from wholebatch.commands.rendezvous import Loopback

    run_id = uuid.uuid4().hex
    faults = _Faults(asked, run_id)
    with tempfile.TemporaryDirectory(prefix="wholebatch-") as folder, _signals_kept(), _hushed():
        spec = WorkerSpec(
            role="rank",
            local_world_size=processes,
            entrypoint=_start,
            args=((work, asked, _environment()), _Stream(1), _Stream(2)),
            rdzv_handler=Loopback(run_id, asked.timeout),
            max_restarts=sys.maxsize,  # it is for `faults` to decide
            monitor_interval=INTERVAL,
        )
        agent = Agent(spec, DefaultLogsSpecs(log_dir=folder), method, faults.decide)
        try:
            failed = agent.run().is_failed()
        except SignalException as stopped:
            faults.stop(signal.Signals(stopped.sigval))
        finally:
            spec.rdzv_handler.shutdown()
    if failed:
        faults.give_up()


class _Faults:
    """What befell the ranks so far, and what comes of it."""

    def __init__(self, asked: Asked, run_id: str) -> None:
        self._asked, self._run_id = asked, run_id
        self._in_a_row = 0
        self._epochs = 0  # kept at the fault before
        self._end = Ended("the ranks ended, and did not say why")

    def decide(self, trouble: Trouble) -> bool:
        """Whether to start the ranks again; says what happened."""
        epochs, mistake = self._epochs_kept(), trouble.mistake
        if mistake is not None and mistake.ending is not None:
            more = f"; {self._what_is_kept()}" if mistake.rank and epochs else ""  # the first rank says so itself
            self._end = Ended(f"{mistake.ending.sentence}{more}", mistake.ending.code)
            return False
        self._in_a_row = 1 if epochs > self._epochs else self._in_a_row + 1
        self._epochs = epochs
        what = trouble.describe()
        if self._in_a_row > MOST_FAULTS:
            self._end = Ended(f"{what}; this is fault {self._in_a_row} in a row: {self._what_is_kept()}")
            return False
        where = f"after epoch {epochs}" if epochs else "at the beginning"
        click.echo(f"wholebatch: {what}; all ranks start again {where}", err=True)
        for line in trouble.diagnoses():
            click.echo(f"  {line}", err=True)
        if trouble.unwritten is not None:
            time.sleep(PAUSE * 2 ** (self._in_a_row - 1))
        return True

    def give_up(self) -> NoReturn:
        """End with what was decided last."""
        self._forget()
        raise self._end

    def stop(self, number: signal.Signals) -> NoReturn:
        """End because a signal says so."""
        said = self._what_is_kept()
        self._forget()
        raise Ended(f"interrupted: {said}", INTERRUPTED if number == signal.SIGINT else 128 + number)

    def _what_is_kept(self) -> str:
        try:
            return kept(self._asked.folder)
        except (ValueError, OSError) as error:
            return str(error)

    def _epochs_kept(self) -> int:
        from wholebatch.runs import Run

        try:
            return Run(self._asked.folder).epochs_kept
        except (ValueError, OSError):
            return 0

    def _forget(self) -> None:
        """Take away a run that this launch began, and that has not finished an epoch."""
        from wholebatch.runs import Run

        run = Run(self._asked.folder)
        try:
            ours = run.config.exists() and run.read_config().launch == self._run_id
        except (ValueError, OSError):
            return
        if ours:
            run.forget()


class _Stream:
    """A stream of this process, handed to a rank that another process forks."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Any]]:
        return _take_stream, (reduction.DupFd(self._number),)  # type: ignore[attr-defined]


def _take_stream(stream: Any) -> int:
    handle: int = stream.detach()
    return handle


def _start(work: tuple[Work, Asked, dict[str, str]], out: int, err: int) -> None:
    """What a rank begins with."""
    for handle, number in ((out, 1), (err, 2)):
        os.dup2(handle, number)
        os.close(handle)
    do, asked, environment = work
    os.environ.update(environment)
    from wholebatch.commands.edge import show_warning

    warnings.showwarning = show_warning if os.environ["RANK"] == "0" else rank.hush
    ending = do(asked)
    if ending is not None:
        ending.write()
    rank.leave(0 if ending is None else ending.code)


def _environment() -> dict[str, str]:
    """This process's, which may not be that of whoever forks the ranks."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}


@contextmanager
def _signals_kept() -> Iterator[None]:
    """torch's agent takes signals over, and does not give them back."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _hushed() -> Iterator[None]:
    """What torch's agent logs is told here in other words; ``WHOLEBATCH_TRACEBACK=1`` shows it."""
    before = logging.root.manager.disable
    if not os.environ.get("WHOLEBATCH_TRACEBACK"):
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
