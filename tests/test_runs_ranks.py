"""What the ranks of a run agree on: a mistake of one is told on the others as one line."""

from __future__ import annotations

from ranks import run_ranks
from wholebatch.runs.ranks import OtherRankError, Ranks


def agree_on(rank: int, messages: list[str | None]) -> str:
    def work() -> int:
        message = messages[rank]
        if message is not None:
            raise ValueError(message)
        return rank

    try:
        return f"gave {Ranks('world').agree(work, 'a mistake')}"
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def test_a_mistake_is_the_ranks_own_and_one_line_for_the_others() -> None:
    found = [outcome.value for outcome in run_ranks(agree_on, 2, ["no\n  room", None])]
    assert found == ["ValueError: no\n  room", f"{OtherRankError.__name__}: rank 0: no room"]
    found = [outcome.value for outcome in run_ranks(agree_on, 2, [None, ""])]
    assert found == [f"{OtherRankError.__name__}: rank 1: ?", "ValueError: "]
    assert [outcome.value for outcome in run_ranks(agree_on, 2, [None, None])] == ["gave 0", "gave 1"]
