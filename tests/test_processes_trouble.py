"""What is said of ranks that did not come to their end, and what is made of how each ended."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest

from wholebatch.commands.asked import UnwrittenError
from wholebatch.commands.ending import Ending, Kind
from wholebatch.commands.trouble import Lost, Trouble
from wholebatch.sharing import MeetingError


def lost(rank: int, code: int = 1, kind: Kind | None = None, sentence: str = "", hung: bool = False) -> Lost:
    return Lost(rank, 100 + rank, code, hung, None if kind is None else Ending(kind, sentence, 1))


def unwritten(number: int) -> UnwrittenError:
    error = UnwrittenError("not written")
    error.__cause__ = OSError(number, "no")
    return error


@pytest.mark.parametrize(
    ("error", "kind", "code", "sentence"),
    [
        (ValueError("a  wrong\nsetting"), "mistake", 1, "a wrong setting"),
        (click.UsageError("no such option"), "mistake", 2, "no such option"),
        (FileNotFoundError(errno.ENOENT, "No such file", "t.csv"), "mistake", 1, "'t.csv'"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "unwritten", 1, "no space left"),
        (unwritten(errno.ENOSPC), "unwritten", 1, "not written"),
        (unwritten(errno.EACCES), "mistake", 1, "not written"),
        (RuntimeError("a bug"), "fault", 1, "raised RuntimeError: a bug"),
        (MemoryError(), "fault", 1, "raised MemoryError"),
        (MeetingError("stopped: rank 1 is gone\na table"), "absence", 1, "stopped: rank 1 is gone"),
        (KeyboardInterrupt(), "interrupted", 130, "interrupted"),
    ],
)
def test_how_a_rank_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: Kind, code: int, sentence: str
):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    Ending.of(error).write()
    found = Ending.read(str(tmp_path / "error.json"))
    assert found == Ending.of(error)
    assert (found.kind, found.code) == (kind, code)
    assert sentence in found.sentence
    assert "\n" not in found.sentence


@pytest.mark.parametrize("content", ["", "{", "[]", '{"message": "text"}', '{"message": {}}'])
def test_a_rank_that_was_killed_while_it_told(tmp_path: Path, content: str):
    (tmp_path / "error.json").write_text(content)
    assert Ending.read(str(tmp_path / "error.json")) is None
    assert Ending.read(str(tmp_path / "nowhere.json")) is None


@pytest.mark.parametrize(
    ("ranks", "said", "causes"),
    [
        ([lost(0, kind="absence"), lost(1, -9)], "rank 1 (process 101) was killed by SIGKILL", [1]),
        ([lost(0, kind="absence"), lost(1, -9, hung=True)], "rank 1 (process 101) did not answer and was killed", [1]),
        ([lost(0, 0), lost(1, kind="fault", sentence="raised X: y")], "rank 1 (process 101) raised X: y", [1]),
        # Ended by the agent because another was killed: no cause of anything.
        ([lost(0, kind="interrupted"), lost(1, -11)], "rank 1 (process 101) was killed by SIGSEGV", [1]),
        ([lost(0, -9, hung=True), lost(1, -9)], "rank 1 (process 101) was killed by SIGKILL", [1]),
        ([lost(0, 7)], "rank 0 (process 100) ended without a word, with the exit code 7", [0]),
        ([lost(0, kind="unwritten", sentence="full")], "rank 0 (process 100) could not go on: full", [0]),
        ([lost(0, kind="absence", sentence="gone"), lost(1, 0)], "rank 0 (process 100) could not go on: gone", [0]),
    ],
)
def test_the_cause_is_told(ranks: list[Lost], said: str, causes: list[int]):
    trouble = Trouble(ranks)
    assert trouble.describe() == said
    assert [each.rank for each in trouble.causes] == causes


def test_of_many_causes_some_are_told():
    said = Trouble([lost(rank, -9) for rank in range(20)]).describe()
    assert said.count("was killed by SIGKILL") == 8
    assert said.endswith(", and 12 more")


def test_a_mistake_goes_before_what_it_caused():
    trouble = Trouble([lost(0, kind="absence"), lost(1, kind="mistake", sentence="wrong"), lost(2, -9)])
    assert trouble.mistake is not None
    assert trouble.mistake.rank == 1
    assert trouble.unwritten is None
