"""``python -m benchmarks``: each measurement is a subcommand, imported when it is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from wholebatch.commands.edge import CONTEXT_SETTINGS, INTERRUPTED, Subcommands, explain

SUBCOMMANDS = {
    "step": "Time one training step, ours and the peers', interleaved.",
    "layer": "Time one layer of batch norm and ReLU, forward and backward, beside the floor of memory sweeps.",
    "gpu": "Time one layer of batch norm and ReLU on a GPU, beside the bandwidth of a copy within its memory.",
    "sharing": "Time what a layer that processes share costs more than a local one.",
    "processes": "Time a step of ranks that share a mini-batch, against one process and torch's DDP.",
    "lockstep": "Time a step in micro-batches and take its memory: exact in lockstep, plain, undivided, checkpointed.",
    "study": "Train small nets in micro-batches, plain and in lockstep, beside the undivided batch and group norm.",
    "fit": "Time whole fits: seconds, score, memory, time to a target score.",
    "faults": "Kill ranks at random moments, and see what comes of it.",
    "precision": "Train at every precision of the products: scores, and the gradients of a step against float64.",
    "scaling": "Time a step as batch, width, depth and threads grow.",
}


@click.group(cls=Subcommands, package="benchmarks", subcommands=SUBCOMMANDS, context_settings=CONTEXT_SETTINGS)
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
