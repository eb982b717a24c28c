"""Being one of the ranks that train a run together, whoever started them: ``--processes``, torchrun, or a cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import click

from wholebatch.commands.asked import Asked
from wholebatch.commands.ending import Ending

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCH_VARIABLE = "TORCHELASTIC_RUN_ID"
START_VARIABLE = "TORCHELASTIC_RESTART_COUNT"
LAST_SECONDS = 5.0  # that a rank gets to end in order once its agent is gone


def is_rank() -> bool:
    """Whether this process was started as a rank: the environment names its place among the others."""
    return all(name in os.environ for name in RANK_VARIABLES)


def ranks_here() -> int:
    """How many ranks were started."""
    return int(os.environ["WORLD_SIZE"])


def take_part(asked: Asked) -> Ending | None:
    """Join the others and do what was asked; returns how it ended where that was not in order.

    Nothing is raised, and the other ranks have been told.
    """
    from wholebatch.sharing import exits

    _end_with_agent()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _interrupt)
    try:
        _join(asked)
    except BaseException as error:
        exits.tell(error)
        if os.environ.get("WHOLEBATCH_TRACEBACK"):
            sys.excepthook(type(error), error, error.__traceback__)
        return Ending.of(error)
    return None


def run_as_rank(asked: Asked) -> None:
    """:func:`take_part` in a process that the person's own launcher started, and that has to tell the person itself.

    The first rank tells everything; of the others each what befell it alone.
    """
    first = os.environ["RANK"] == "0"
    if not first:
        warnings.showwarning = hush
    ending = take_part(asked)
    if ending is None:
        return
    ending.write()
    if first or ending.kind not in ("mistake", "interrupted"):
        sentence = ending.details if ending.kind == "absence" else ending.sentence
        click.echo(f"wholebatch: {'' if first else 'rank ' + os.environ['RANK'] + ': '}{sentence}", err=True)
    leave(ending.code)


def leave(code: int) -> NoReturn:
    """End at once: a group's destructor would wait for collectives that will never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(asked: Asked) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from wholebatch.feedforward.threads import usable_cores
    from wholebatch.runs.ranks import Ranks
    from wholebatch.sharing import set_timeout

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(asked.options["threads"] or usable_cores())
    if (
        sys.platform == "linux" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    ):  # all on this host: nobody else's business
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    set_timeout(asked.timeout)
    timeout = timedelta(seconds=asked.timeout)
    store, rank, ranks = next(rendezvous("env://", timeout=timeout))
    # Where torch's agent starts ranks again, its store still has what those before put there: addresses, an alarm.
    store = PrefixStore(f"start {os.environ.get(START_VARIABLE, '0')}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)
    asked.do(Ranks("world", os.environ.get(LAUNCH_VARIABLE, "")))
    dist.destroy_process_group()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C comes from the terminal and once more from the agent: the second is not to break what the first began."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: None)  # not SIG_IGN: Python complains where one is on its way already
    raise KeyboardInterrupt


def _end_with_agent() -> None:
    """End when the elastic agent does, however it ends: nobody would start this rank again, or look after it."""
    if LAUNCH_VARIABLE in os.environ:
        threading.Thread(target=_watch_agent, name="wholebatch agent", daemon=True).start()


def _watch_agent() -> None:
    agent = multiprocessing.parent_process()
    if agent is not None:
        agent.join()
    else:
        before = os.getppid()
        while os.getppid() == before:
            time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_SECONDS)
    os._exit(1)


def hush(*_: object, **__: object) -> None:
    """A note that the first rank shows already."""
