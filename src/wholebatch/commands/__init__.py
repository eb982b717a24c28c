"""The command line: ``wholebatch train``, ``predict`` and ``report``. One file per subcommand."""

from wholebatch.commands.edge import main

__all__ = ["main"]
