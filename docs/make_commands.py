"""Write docs/commands.md from what the commands print for --help. `make docs` runs it; a test sees that it was run."""

from __future__ import annotations

from pathlib import Path

import click

from wholebatch.commands.edge import cli

HEADER = "# The commands\n\nWhat `--help` prints, written by `make docs`.\n"


def help_of(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """The help of a command and of all below it, as Markdown."""
    settings = {**command.context_settings, "max_content_width": 100, "terminal_width": 100}  # -h and --help among them
    context = click.Context(command, info_name=name, parent=parent, **settings)
    text = f"\n## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            text += help_of(below, each, context)
    return text


def page() -> str:
    """All of docs/commands.md."""
    return HEADER + help_of(cli, "wholebatch")


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(page(), encoding="utf-8")
