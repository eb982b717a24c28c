"""Where the command line meets the person: subcommands imported on demand, mistakes told in one sentence.

Exit codes: 0 done; 1 something is wrong with a table, a file or a setting; 2 with the command line itself; 130 Ctrl-C.
``WHOLEBATCH_TRACEBACK=1`` shows the traceback behind a sentence.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from types import FrameType
from typing import Any, NoReturn

import click

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

# Named here so that `wholebatch --help` need not import them: torch alone takes a second.
SUBCOMMANDS = {
    "train": "Train a net on a table.",
    "predict": "Predict the rows of another table.",
    "compare": "Compare norms: per step, and to a target score.",
    "timeline": "Show one step of the engine, thread by thread: who waits for whom.",
    "profile": "Measure what normalisation layers take of your own training step.",
    "plan": "Predict steps and waits with more workers, and check the predictions.",
    "sync": "Measure whose rows batch norm should be over, where ranks train one net.",
    "report": "Make a report again: of a run, or of what was measured.",
}


class Subcommands(click.Group):
    """A group whose commands are imported when they are run, or asked for their own help.

    Args:
        package: of the modules; the subcommand NAME is the function ``NAME`` in the module ``package.NAME``.
        subcommands: what each does, by name.
    """

    def __init__(self, *, package: str, subcommands: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self.package, self.subcommands = package, subcommands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.subcommands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.subcommands:
            return None
        command: click.Command = getattr(import_module(f"{self.package}.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.subcommands.items()))


@click.group(cls=Subcommands, package="wholebatch.commands", subcommands=SUBCOMMANDS, context_settings=CONTEXT_SETTINGS)
@click.version_option(version("wholebatch"), prog_name="wholebatch")
def cli() -> None:
    """Batch-normalised feed-forward nets on your own table: the mini-batch split over threads and yet whole."""


class Ended(click.ClickException):
    """The end of a command, with an exit code of its own."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = code  # type: ignore[misc]


class Interrupted(click.ClickException):
    """Ctrl-C, with what was kept."""

    exit_code = INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; a mistake ends in one sentence on stderr and an exit code, not in a traceback."""
    warnings.showwarning = show_warning
    try:
        with _imports_guarded():
            code = cli.main(arguments, prog_name="wholebatch", standalone_mode=False)
    except (click.ClickException, click.Abort, KeyboardInterrupt, ValueError, OSError) as error:
        if os.environ.get("WHOLEBATCH_TRACEBACK"):
            raise
        code = _tell(error)
    if code == INTERRUPTED:
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # taking torch down takes the interpreter a second more
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _imports_guarded() -> Iterator[None]:
    """Ctrl-C while torch and what it needs are imported ends the process at once, for nothing was begun: at an
    exception from Python torch's C++ would abort, and numpy would be left half imported."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not _is_imported("torch") and _is_importing(frame):
            _say("interrupted")
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        signal.default_int_handler(number, frame)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # shells let it be ignored
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_imported(name: str) -> bool:
    """Whether a module is there, and not half of it."""
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def explain(error: OSError) -> str:
    """What the system would not do, to which file, and the remedy."""
    file = f"{str(error.filename)!r}" if error.filename is not None else "a file"
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{file} could not be written: {reason}; free some space or choose another --out"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return f"{file} could not be opened: {reason}; choose another path, or change its permissions"
    return f"{file} could not be read or written: {reason}"


def _tell(error: BaseException) -> int:
    """Say what went wrong on stderr; returns the exit code."""
    if isinstance(error, click.ClickException):
        _say(error.format_message())
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `wholebatch predict ... --out - | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    _say(explain(error) if isinstance(error, OSError) else str(error))
    return 1


def _say(sentence: str) -> None:
    click.echo("wholebatch: " + " ".join(sentence.split()), err=True)


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a note, without the place in the source."""
    click.echo("note: " + " ".join(str(message).split()), err=True)
