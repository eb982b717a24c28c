"""Where ranks differ that have to be alike."""

from __future__ import annotations

from typing import Any

import pytest

from wholebatch.sharing.alike import find_difference


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([{"a": 1}], None),
        ([{"a": 1, "b": [2]}, {"b": [2], "a": 1}], None),
        ([{"a": 1, "b": 2}, {"a": 1, "b": 3}], ("b", 1)),
        ([{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 0, "b": 3}], ("a", 2)),
        ([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 0, "b": 2}], ("a", 2)),
        ([{"a": 1}, {"a": 1, "b": 2}], ("b", 1)),
        ([{"a": 1, "b": 2}, {"a": 1}], ("b", 1)),
    ],
)
def test_the_first_name_and_the_first_rank_that_differ(told: list[dict[str, Any]], expected: tuple[str, int] | None):
    assert find_difference(told) == expected
