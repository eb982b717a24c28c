"""What a person asked of ``wholebatch train``, as values that a process can be handed, and how it is done.

It is done by the process that the person started, or by each of the ranks that share the work.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wholebatch.commands.edge import Interrupted, explain

if TYPE_CHECKING:
    from wholebatch.runs import Recording, Session, Settings
    from wholebatch.runs.ranks import Ranks


@dataclass(frozen=True)
class Asked:
    """One call of the command.

    Attributes:
        options: all settings, by name, as the command line has them.
        given: those that were typed.
        folder: the run's.
        going_on: with the run in ``folder``, which was stopped.
        command: the line that was typed.
        timeout: seconds that a rank waits for another.
    """

    options: dict[str, Any]
    given: frozenset[str]
    folder: Path
    going_on: bool
    tensorboard: bool
    quiet: bool
    command: str
    timeout: float

    def do(self, ranks: Ranks) -> None:
        """Train, and say how it went."""
        session = self._open(ranks)
        recording = _run(session, self.quiet or not ranks.first)
        if recording is not None:
            _tell_result(session, recording, self.quiet)

    def _open(self, ranks: Ranks) -> Session:
        from wholebatch import runs

        given = {name: value for name, value in self.options.items() if name in self.given}
        if self.going_on:
            return runs.resume(
                self.folder, lambda recorded: _change(recorded, given), tensorboard=self.tensorboard, ranks=ranks
            )
        if self._began_here(ranks):
            return runs.resume(self.folder, tensorboard=self.tensorboard, ranks=ranks)
        settings = _change(runs.Settings(table=self.options["table"], target=self.options["target"]), self.options)
        return runs.begin(settings, self.folder, tensorboard=self.tensorboard, command=self.command, ranks=ranks)

    def _began_here(self, ranks: Ranks) -> bool:
        """Whether the run in the folder was begun by this very launch, which has started its ranks again."""
        from wholebatch.runs import Run

        def look() -> bytes:
            run = Run(self.folder)
            return b"1" if ranks.launch and run.config.exists() and run.read_config().launch == ranks.launch else b""

        return bool(ranks.agree_first(look, "the run folder"))


def _change(settings: Settings, given: dict[str, Any]) -> Settings:
    """``settings`` with these options in place of its own, checked."""
    if given.get("patience") == 0:
        given = given | {"patience": None}
    return type(settings).model_validate(settings.model_dump() | {n: v for n, v in given.items() if n != "table" or v})


def _run(session: Session, quiet: bool) -> Recording | None:
    """Train with a progress bar; Ctrl-C and errors say what was kept."""
    from wholebatch.commands.progress import Display

    display = Display(session, quiet)
    try:
        with display:
            return session.train(display.progress, display.epoch)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {kept(session.run.path)}") from None
    except OSError as error:
        raise UnwrittenError(f"{explain(error)}; {kept(session.run.path)}") from error
    except ValueError as error:
        done = session.run.epochs_kept if session.ranks.first else 0  # the others do not know whether it is written
        more = f"; epochs 1 to {done} are kept in {session.run.path}" if done else ""
        raise click.ClickException(f"{error}{more}") from error


class UnwrittenError(click.ClickException):
    """A file could not be written while a run was under way."""


def kept(folder: Path) -> str:
    """What stands in a run folder, and how to go on."""
    from wholebatch.runs import Run

    run = Run(folder)
    done = run.epochs_kept
    if done == 0:
        return "no epoch was finished, nothing was kept"
    return (
        f"{done} of {run.read_config().settings.epochs} epochs are kept in {folder}, "
        f"go on with: wholebatch train --resume {shlex.quote(str(folder))}"
    )


def _tell_result(session: Session, recording: Recording, quiet: bool) -> None:
    """The table of scores, then the two lines that scripts read."""
    from wholebatch.commands.progress import show_scores

    if not quiet:
        if recording.stopped_early:
            patience = session.settings.patience
            click.echo(f"stopped early: {patience} epochs without a lower validation loss", err=True)
        if recording.best_epoch is not None:
            click.echo(f"kept: epoch {recording.best_epoch}, with the lowest validation loss", err=True)
        show_scores(recording)
    shown = recording.headline
    value = "-" if shown.score is None else f"{shown.score:.4f}"
    click.echo(f"{shown.part} {recording.score_name} {value}")
    click.echo(f"report {session.run.report}")
