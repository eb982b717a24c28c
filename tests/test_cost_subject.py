"""What makes the numbers of trainings weaker than they look, said where it is so and nowhere else."""

from __future__ import annotations

import pytest

from wholebatch.cost.digits import duration, four_decimals
from wholebatch.cost.subject import doubt_rows
from wholebatch.cost.timing import doubt_machine, summarise


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (1, ["Only 1 validation rows: one of them weighs 100.0%"]),
        (99, ["Only 99 validation rows: one of them weighs 1.0%"]),
        (100, []),
    ],
)
def test_few_validation_rows_are_told(rows: int, said: list[str]):
    assert [sentence.split(",")[0] for sentence in doubt_rows(rows)] == said


def test_rounds_that_lie_far_apart_are_told_with_the_widest():
    quiet, busy = summarise([1.0, 1.0, 1.4, 1.4], 5), summarise([1.0, 1.0, 1.6, 1.6], 5)
    assert doubt_machine([quiet], "rounds differ", "Wait.") == []
    (said,) = doubt_machine([quiet, busy], "rounds differ", "Wait.")
    assert "rounds differ by up to 1.6 times" in said
    assert said.endswith("Wait.")


def test_a_score_has_four_decimals_and_no_minus_zero():
    assert [four_decimals(value) for value in (-0.00001, 0.97216, 1)] == ["0.0000", "0.9722", "1.0000"]


def test_a_time_that_rounds_up_to_a_unit_is_told_in_it():
    assert [duration(seconds) for seconds in (0.9994e-3, 0.9996e-3, 0.99949, 0.9996)] == [
        "999 µs",
        "1.00 ms",
        "999 ms",
        "1.00 s",
    ]
