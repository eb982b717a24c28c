"""How a rank ended, told to whoever started it: in the file that torch's elastic agent names for that."""

from __future__ import annotations

import errno
import json
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from wholebatch.commands.asked import UnwrittenError
from wholebatch.commands.edge import Interrupted, explain

Kind = Literal["mistake", "unwritten", "fault", "absence", "interrupted"]
FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
# What may be better in a moment, for another process took it or it is far away.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


@dataclass(frozen=True)
class Ending:
    """How a rank ended before its work was done.

    Attributes:
        kind: ``mistake``: a person's, which would come again; ``unwritten``: a file that could not be written now;
            ``fault``: any other error; ``absence``: another rank was missing; ``interrupted``: by a signal.
        sentence: for the person.
        code: the exit code.
        details: traceback, or the table of where each rank stood.
    """

    kind: Kind
    sentence: str
    code: int
    details: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Ending:
        """What became of a rank that raised this."""
        from wholebatch.sharing import MeetingError

        details = "".join(traceback.format_exception(error))
        if isinstance(error, (KeyboardInterrupt, click.Abort, Interrupted)):
            said = error.format_message() if isinstance(error, click.ClickException) else "interrupted"
            return cls("interrupted", said, Interrupted.exit_code, details)
        if isinstance(error, MeetingError):
            return cls("absence", str(error).splitlines()[0], 1, str(error))
        if isinstance(error, UnwrittenError):
            passing = isinstance(error.__cause__, OSError) and error.__cause__.errno in PASSING
            return cls("unwritten" if passing else "mistake", error.format_message(), error.exit_code, details)
        if isinstance(error, click.ClickException):
            return cls("mistake", error.format_message(), error.exit_code, details)
        if isinstance(error, OSError):
            return cls("unwritten" if error.errno in PASSING else "mistake", explain(error), 1, details)
        if isinstance(error, ValueError):
            return cls("mistake", " ".join(str(error).split()), 1, details)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return cls("fault", f"raised {said}", 1, details)

    def write(self) -> None:
        """Leave it for the agent, in the form that torch's own summary shows, too."""
        path = os.environ.get(FILE_VARIABLE)
        if not path:
            return
        more = {"timestamp": str(int(time.time())), "py_callstack": self.details, "kind": self.kind}
        content = {"message": {"message": self.sentence, "errorCode": self.code, "extraInfo": more}}
        Path(path).write_text(json.dumps(content))

    @classmethod
    def read(cls, path: str) -> Ending | None:
        """What a rank left there; None: it died without a word, or in the middle of one."""
        try:
            message = json.loads(Path(path).read_text())["message"]
            more = message["extraInfo"]
            return cls(more["kind"], message["message"], message["errorCode"], more["py_callstack"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
