"""split_rows: every row in one part, the same for the same seed, classes in the same shares wherever that can be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from wholebatch.feedforward.data import split_rows


@given(
    classes=st.lists(st.integers(0, 12), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.6),
    seed=st.integers(0, 2**32 - 1),
    stratified=st.booleans(),
)
def test_every_row_is_in_one_part(classes: list[int], fraction: float, seed: int, stratified: bool) -> None:
    rows = len(classes)
    stratify = np.array(classes) if stratified else None
    if math.ceil(fraction * rows) == rows:
        with pytest.raises(ValueError, match="leaves none to learn from"):
            split_rows(rows, fraction, seed, stratify)
        return
    kept, held = split_rows(rows, fraction, seed, stratify)
    assert len(held) == math.ceil(fraction * rows)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(rows))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    again = split_rows(rows, fraction, seed, stratify)
    np.testing.assert_array_equal(again[0], kept)


def test_shares_are_kept_to_within_a_row() -> None:
    classes = np.repeat([0, 1, 2], [600, 300, 100])
    kept, held = split_rows(1000, 0.15, 3, classes)
    assert np.bincount(classes[held]).tolist() == [90, 45, 15]  # 15 % of each, exactly, as each is a whole number
    assert np.bincount(classes[kept]).tolist() == [510, 255, 85]


def test_is_scikit_learns_split_where_every_class_repeats() -> None:
    classes = np.random.default_rng(0).integers(0, 4, 200)
    expected_kept, expected_held = train_test_split(np.arange(200), test_size=0.2, random_state=7, stratify=classes)
    kept, held = split_rows(200, 0.2, 7, classes)
    np.testing.assert_array_equal(kept, np.sort(expected_kept))
    np.testing.assert_array_equal(held, np.sort(expected_held))


def test_single_rows_are_kept_and_the_others_still_stratified() -> None:
    classes = np.array([5, 9] + [0] * 50 + [1] * 50)  # 5 and 9 stand once
    for seed in range(20):
        kept, held = split_rows(len(classes), 0.2, seed, classes)
        assert {0, 1} <= set(kept)
        assert sorted(np.bincount(classes[held], minlength=2)[:2].tolist()) == [10, 11]


def test_a_held_out_part_smaller_than_the_number_of_classes() -> None:
    classes = np.arange(10).repeat(3)
    kept, held = split_rows(30, 0.1, 0, classes)  # 3 rows for 10 classes
    assert len(kept) == 27
    assert len(held) == 3


def test_a_class_that_is_not_there_does_not_matter() -> None:
    classes = np.array([0] * 40 + [7] * 40)  # classes 1 to 6 have no row, as after an earlier split
    _, held = split_rows(80, 0.25, 1, classes)
    assert np.bincount(classes[held])[[0, 7]].tolist() == [10, 10]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_a_fraction_that_is_none(fraction: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        split_rows(10, fraction, 0)


def test_too_few_rows_to_split() -> None:
    with pytest.raises(ValueError, match=r"holding out 0\.1 of 1 rows leaves none to learn from"):
        split_rows(1, 0.1, 0)
