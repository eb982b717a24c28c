"""A command that ran in this process, and what it said."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from wholebatch.commands import main


@dataclass
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    def check_mistake(self, *words: str, code: int = 1) -> None:
        """One sentence on stderr with all of these words, and nothing else."""
        assert self.code == code, self.err
        assert self.err.startswith("wholebatch: ")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        for word in words:
            assert word in self.err, self.err


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Said:
    """Run ``wholebatch`` with these arguments to its end."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Said(ended.value.code, said.out, said.err)
