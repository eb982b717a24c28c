"""The claim "3 to 5 times slower per step", held against made-up rounds."""

from __future__ import annotations

import pytest

from comparisons import make_contender
from wholebatch.cost.comparison import claim
from wholebatch.cost.comparison.record import Claim


@pytest.mark.parametrize(
    ("value", "low", "high", "expected", "word"),
    [
        (1.02, 0.97, 1.08, "free", "does not hold"),
        (0.90, 0.85, 0.95, "free", "does not hold"),
        (1.38, 1.29, 1.54, "less", "does not hold"),
        (2.90, 2.80, 2.99, "less", "does not hold"),
        (2.90, 2.80, 3.10, "unclear", "neither yes nor no"),
        (3.90, 3.50, 4.20, "holds", " holds here"),
        (3.00, 3.00, 5.00, "holds", " holds here"),
        (4.90, 4.80, 5.20, "unclear", "neither yes nor no"),
        (7.10, 6.00, 9.00, "more", "even more"),
        (1.50, 0.90, 3.50, "unclear", "neither yes nor no"),
        (3.20, 2.00, 2.90, "unclear", "neither yes nor no"),  # the ratio of medians beside the rounds' ratios
    ],
)
def test_the_verdict(value: float, low: float, high: float, expected: str, word: str):
    found = claim.answer(value, low, high)
    assert found == expected
    made = Claim(norm="batch", engine="torch", ratio=value, low=low, high=high, answer=found)
    said = claim.sentence(made)
    assert word in said
    assert f"{value:.2f} times" in said
    assert "torch eager" in said
    assert (" holds" in claim.headline([made])) == (expected == "holds")


def test_the_headline_tells_engines_apart_that_do_not_agree():
    one = Claim(norm="batch", engine="wholebatch", ratio=1.1, low=1.05, high=1.2, answer="less")
    other = Claim(norm="batch", engine="torch", ratio=3.5, low=3.2, high=3.9, answer="holds")
    said = claim.headline([one, other])
    assert "does not hold on wholebatch, holds on torch eager" in said
    assert "does not hold on this machine" in claim.headline([one])


def test_the_ratio_is_that_of_medians_and_its_spread_that_of_rounds():
    above, below = [2.0, 4.0, 6.0, 8.0, 50.0], [1.0, 1.0, 2.0, 2.0, 5.0]
    value, low, high = claim.ratio(above, below)
    assert value == 3.0
    # rounds: 2, 4, 3, 4, 10; numpy's linear percentiles of 2 3 4 4 10 at 0.2 * 4 = 0.8 and 3.2
    assert (low, high) == pytest.approx((2.8, 5.2), abs=1e-12)


def test_claims_are_made_where_none_was_measured_on_the_same_engine():
    found = claim.check([make_contender("batch"), make_contender("layer", "torch"), make_contender("none")])
    assert [(c.norm, c.engine) for c in found] == [("batch", "wholebatch")]
