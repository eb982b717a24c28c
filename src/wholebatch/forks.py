"""The server that forks ranks of this host: it has the libraries imported, so that they start within moments."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from multiprocessing.context import BaseContext


def start_server(context: BaseContext, modules: Sequence[str]) -> None:
    """Let it import ``modules`` while this process goes on; nothing where processes are not made so.

    Ctrl-C does not reach it, nor what it forks until that asks for it: it would show a traceback. It ends with this
    process. (Blocking the signal would not do: multiprocessing lets it through again as it starts its tracker.)
    """
    if context.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver

    context.set_forkserver_preload(list(modules))
    if threading.current_thread() is not threading.main_thread():  # which alone may say what becomes of signals
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
