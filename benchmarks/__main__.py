"""``python -m benchmarks``: each measurement is a subcommand, imported when it is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from wholebatch.commands.edge import INTERRUPTED, explain

# A subcommand NAME is the function `NAME` in the module benchmarks.NAME.
SUBCOMMANDS = {
    "step": "Time one training step, ours and the peers', interleaved.",
    "fit": "Time whole fits: seconds, score, memory, time to a target score.",
    "scaling": "Time a step as batch, width, depth and threads grow.",
}


class Subcommands(click.Group):
    """A group whose commands are imported when they are run, or asked for their own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = getattr(import_module(f"benchmarks.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Measure wholebatch and its peers on this machine."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run and exit; a mistake ends in one sentence on stderr and an exit code (2 the command line, 130 Ctrl-C)."""
    try:
        code = cli.main(arguments, prog_name="python -m benchmarks", standalone_mode=False)
    except click.ClickException as error:
        code = _tell(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _tell("interrupted", INTERRUPTED)
    except OSError as error:
        code = _tell(explain(error), 1)
    except ValueError as error:
        code = _tell(str(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(sentence: str, code: int) -> int:
    click.echo("benchmarks: " + " ".join(sentence.split()), err=True)
    return code


if __name__ == "__main__":
    main()
