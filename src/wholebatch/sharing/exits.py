"""Noticing that this process ends, so that the other ranks need not wait to learn it.

An uncaught exception is seen by ``sys.excepthook`` and ``threading.excepthook``; those of before are called too. A
child of ``multiprocessing`` prints its exceptions itself and skips ``atexit``: there a finalizer looks at the exception
under way. Whoever is killed sees nothing of it: the others look for the process.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util
import os
import sys
import threading
import weakref
from types import TracebackType
from typing import Protocol

from wholebatch.sharing.diagnosis import Doing, MeetingError

_MOST_TEXT = 400


class Leaver(Protocol):
    """Something with other ranks behind it."""

    thread: int  # the one that met the others last

    def leave(self, doing: Doing, text: str) -> None: ...


_leavers: weakref.WeakSet[Leaver] = weakref.WeakSet()
_installed_in = 0  # a process: a child that was forked is not the rank


def watch(leaver: Leaver) -> None:
    """Call ``leaver.leave`` when this process ends or an exception ends the thread that the leaver works in."""
    global _installed_in
    _leavers.add(leaver)
    if _installed_in == os.getpid():
        return
    _installed_in = os.getpid()
    _hook_exceptions()
    _hook_threads()
    atexit.register(_end)
    multiprocessing.util.Finalize(None, _end, exitpriority=100)


def tell(error: BaseException) -> None:
    """Tell the others that this process ends by ``error``, which is caught: no hook will see it."""
    _leave(*reason_of(error))


def reason_of(error: BaseException) -> tuple[Doing, str]:
    """What a rank that raised ``error`` is doing, and what it says of it."""
    if isinstance(error, MeetingError):
        return Doing.GAVE_UP, error.cause
    return Doing.RAISED, describe(error, type(error))


def describe(error: BaseException | None, kind: type[BaseException]) -> str:
    """``ValueError: its text``, on one line of bounded length."""
    text = " ".join(f"{kind.__name__}: {error}".split()).removesuffix(": None").rstrip(": ")
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _leave(doing: Doing, text: str, thread: int | None = None) -> None:
    if os.getpid() != _installed_in:
        return
    for leaver in list(_leavers):
        if thread is None or leaver.thread == thread:
            with contextlib.suppress(Exception):  # nothing may stand in the way of the error that is being told
                leaver.leave(doing, text)


def _hook_exceptions() -> None:
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _leave(Doing.RAISED, describe(error, kind))
        before(kind, error, trace)

    sys.excepthook = hook


def _hook_threads() -> None:
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        # A loader's thread may fail, and its rank go on.
        if arguments.thread is not None and arguments.thread.ident is not None:
            _leave(Doing.RAISED, describe(arguments.exc_value, arguments.exc_type), arguments.thread.ident)
        before(arguments)

    threading.excepthook = hook


def _end() -> None:
    error = sys.exception()
    if isinstance(error, SystemExit) and error.code not in (None, 0) and error.__context__ is not None:
        error = error.__context__  # torch.multiprocessing.spawn catches the exception, and exits with 1
    if error is None or isinstance(error, SystemExit):
        _leave(Doing.ENDED, "")
    else:
        _leave(Doing.RAISED, describe(error, type(error)))
