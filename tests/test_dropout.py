"""Dropout masks: Philox4x32-10 as published, and masks that are random but for where an element stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholebatch.feedforward.dropout import dropout_mask, philox

# The known-answer vectors of Random123 (Salmon et al.), file kat_vectors: philox4x32, 10 rounds.
# counter (4 words), key (2 words), answer (4 words)
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """The round of the paper's section 3.2, on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_vectors(counter: str, key: str, answer: str):
    low, high = words(key)
    given = philox(np.array(words(counter), dtype=np.uint64), low + (high << 32))
    assert [int(word) for word in given] == words(answer) == philox_by_hand(words(counter), words(key))


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 11),
    layer=st.integers(0, 5),
    step=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**64 - 1),
    p=st.floats(0.0, 0.999),
)
def test_masks_are_the_stated_words(rows: int, columns: int, layer: int, step: int, seed: int, p: float):
    """Element (row, column): word ``column % 4`` of the counter ``(column // 4, row, layer, step)`` under the seed."""
    mask = dropout_mask(rows, columns, layer, step, seed, p)
    assert mask.shape == (rows, columns)
    assert mask.dtype == bool
    for row in range(rows):
        for column in range(columns):
            answer = philox_by_hand([column // 4, row, layer, step], [seed % 2**32, seed >> 32])
            assert mask[row, column] == (answer[column % 4] >= int(p * 2**32))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_rate(p: float):
    """The share that stays, within 5 standard deviations of a binomial: a chance of 6e-7 were the words true chance."""
    mask = dropout_mask(1000, 400, 1, 12, 3, p)
    n = mask.size
    assert abs(mask.mean() - (1 - p)) <= 5 * (p * (1 - p) / n) ** 0.5


def test_independence():
    """No correlation between neighbours in a row or column, between steps, layers or seeds: each within 5 / sqrt(n)."""
    here = dropout_mask(500, 400, 0, 0, 1, 0.5).astype(float) * 2 - 1
    others = {
        "next column": np.roll(here, 1, axis=1),
        "next quad": np.roll(here, 4, axis=1),
        "next row": np.roll(here, 1, axis=0),
        "next step": dropout_mask(500, 400, 0, 1, 1, 0.5) * 2.0 - 1,
        "next layer": dropout_mask(500, 400, 1, 0, 1, 0.5) * 2.0 - 1,
        "next seed": dropout_mask(500, 400, 0, 0, 2, 0.5) * 2.0 - 1,
        "seed in the high word": dropout_mask(500, 400, 0, 0, 1 + 2**32, 0.5) * 2.0 - 1,
    }
    for name, other in others.items():
        assert abs((here * other).mean()) <= 5 / here.size**0.5, name


def test_a_mask_is_a_part_of_a_larger_one():
    """An element's fate does not depend on how many rows or columns stand beside it."""
    large = dropout_mask(40, 30, 2, 5, 99, 0.3)
    np.testing.assert_array_equal(dropout_mask(17, 30, 2, 5, 99, 0.3), large[:17])
    np.testing.assert_array_equal(dropout_mask(40, 7, 2, 5, 99, 0.3), large[:, :7])
