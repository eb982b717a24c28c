"""Preprocessing of numbers and categories against formulas written out here in float64."""

import math
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from standardised import ATOL, RTOL, column, standardised
from wholebatch.tables import Preprocessing, read_table
from wholebatch.tables.encoders import MAX_CATEGORIES
from wholebatch.tables.scaling import BOUND


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e8])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_numbers_are_standardised_wherever_they_lie(offset: float, scale: float) -> None:
    values = (offset + scale * np.random.default_rng(0).standard_normal(500)).tolist()
    found = column(pl.DataFrame({"x": values}), "x")
    np.testing.assert_allclose(found, standardised(values), rtol=RTOL, atol=1e-12 + 1e-15 * abs(offset) / scale)


@pytest.mark.parametrize("unit", [1e300, 1e-200, 1e-315, 2.0**1023])
def test_numbers_of_any_magnitude(unit: float) -> None:
    values = np.array([-1.0, 0.25, 0.5, 1.75]) * unit
    shape = (values / unit).tolist()  # what is left of the numbers after rounding in the range of subnormals
    np.testing.assert_allclose(column(pl.DataFrame({"x": values}), "x"), standardised(shape), rtol=RTOL)


def test_missing_numbers_become_the_median_and_are_marked() -> None:
    values = [5.0, None, 1.0, math.nan, 2.0, 40.0]
    frame = pl.DataFrame({"x": values, "full": range(6)})
    fitted = Preprocessing.fit(frame)
    assert fitted.feature_names == ["x", "full", "x is missing"]
    found = fitted.transform(frame)
    np.testing.assert_allclose(found[:, 0], standardised(values), rtol=RTOL, atol=ATOL)
    assert found[:, 2].tolist() == [0, 1, 0, 1, 0, 0]
    x, full = fitted.columns
    assert (x.name, x.kind, x.features, x.dropped) == ("x", "number", ("x", "x is missing"), None)
    assert "the median (3.5)" in x.became
    assert full.became == "standardised"


def test_a_column_that_was_full_may_have_missing_values_later() -> None:
    fitted = Preprocessing.fit(pl.DataFrame({"x": [1.0, 2.0, 6.0], "c": ["a", "b", "a"]}))
    found = fitted.transform(
        pl.DataFrame({"x": [None, 2.0], "c": [None, "b"]}, schema={"x": pl.Float64, "c": pl.String})
    )
    assert found[0, 0] == found[1, 0]
    assert found[:, 1:].tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([1, 2, 7], dtype=pl.UInt8),
        pl.Series([1, 2, 7], dtype=pl.Int128),
        pl.Series(["1", "2", "7"]).cast(pl.Decimal(20, 3)),
        pl.Series([1, 2, 7], dtype=pl.Float32),
        pl.Series([timedelta(hours=1), timedelta(hours=2), timedelta(hours=7)]),
    ],
)
def test_every_type_of_number(values: pl.Series) -> None:
    found = column(pl.DataFrame({"x": values}), "x")
    np.testing.assert_allclose(found, standardised([1.0, 2.0, 7.0]), rtol=RTOL, atol=ATOL)


def test_true_and_false_are_one_and_zero() -> None:
    frame = pl.DataFrame({"x": [True, False, None, True, True]})
    fitted = Preprocessing.fit(frame)
    assert fitted.columns[0].kind == "boolean"
    np.testing.assert_allclose(column(frame, "x"), standardised([1, 0, None, 1, 1]), rtol=RTOL, atol=ATOL)
    as_numbers = pl.DataFrame({"x": [1, 0, None, 1, 1]})
    np.testing.assert_array_equal(fitted.transform(as_numbers), fitted.transform(frame))


def test_categories_have_an_output_each_and_missing_is_one() -> None:
    frame = pl.DataFrame({"c": ["b", None, " a", "b ", "NA", "é"]})
    fitted = Preprocessing.fit(frame)
    assert fitted.feature_names == ["c=a", "c=b", "c=é", "c is missing"]
    expected = np.array([1, 3, 0, 1, 3, 2])[:, None] == np.arange(4)
    np.testing.assert_array_equal(fitted.transform(frame), expected.astype(np.float32))
    unknown = pl.DataFrame({"c": ["z", "a"]}, schema={"c": pl.Categorical})
    np.testing.assert_array_equal(fitted.transform(unknown), [[0, 0, 0, 0], [1, 0, 0, 0]])
    assert fitted.columns[0].became == "4 categories, an output each"


def test_the_rarest_of_many_categories_share_an_output() -> None:
    names = [*(f"v{k:03}" for k in range(98)), "0", "1"]  # the last two: what a stand-in might be called
    texts = [name for k, name in enumerate(names) for _ in range(2 + k)]  # the last is the most frequent
    frame = pl.DataFrame({"c": texts})
    fitted = Preprocessing.fit(frame)
    frequent = sorted(names[-(MAX_CATEGORIES - 1) :])
    assert fitted.feature_names == [*(f"c={name}" for name in frequent), "c: any other"]
    index = {name: k for k, name in enumerate(frequent)}
    expected = np.array([index.get(t, MAX_CATEGORIES - 1) for t in texts])[:, None] == np.arange(MAX_CATEGORIES)
    np.testing.assert_array_equal(fitted.transform(frame), expected.astype(np.float32))
    never_seen = fitted.transform(pl.DataFrame({"c": ["v100", None, "2", "v000"]}))
    np.testing.assert_array_equal(never_seen, np.tile(np.eye(MAX_CATEGORIES)[-1], (4, 1)))


def test_whole_numbers_are_the_categories_they_were_as_text() -> None:
    fitted = Preprocessing.fit(pl.DataFrame({"c": ["1", "2", "x"]}))
    np.testing.assert_array_equal(
        fitted.transform(pl.DataFrame({"c": [2, 1, None]})), [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    )


def test_categories_with_leading_zeros_survive_a_file_of_numbers_only(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("zip,n\n007,1\n010,2\nx,4\n")
    (tmp_path / "new.csv").write_text("zip,n\n007,1\n")
    fitted = Preprocessing.fit(read_table(tmp_path / "train.csv"))
    assert fitted.text_columns == ["zip"]
    found = fitted.transform(read_table(tmp_path / "new.csv", text=fitted.text_columns))
    assert found[0, fitted.feature_names.index("zip=007")] == 1


def test_a_file_of_either_kind_gives_the_same_bits(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    frame = pl.DataFrame(
        {
            "x": np.where(generator.random(60) < 0.2, None, generator.standard_normal(60)).tolist(),
            "n": generator.integers(-5, 5, 60),
            "c": generator.choice(["a", "b", None], 60).tolist(),
            "t": [datetime(2020, 1, 1) + timedelta(hours=int(h)) for h in generator.integers(0, 9999, 60)],
            "d": [date(2020, 1, 1) + timedelta(days=int(h)) for h in generator.integers(0, 999, 60)],
            "b": generator.choice([True, False, None], 60).tolist(),
        }
    )
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    text, binary = read_table(tmp_path / "t.csv"), read_table(tmp_path / "t.parquet")
    from_text, from_binary = Preprocessing.fit(text), Preprocessing.fit(binary)
    assert from_text.to_dict() == from_binary.to_dict()
    np.testing.assert_array_equal(from_text.transform(text), from_binary.transform(binary))


def test_columns_in_another_order_and_others_beside_them() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, 4.0], "c": ["a", "b", "a"], "y": [0, 1, 0]})
    fitted = Preprocessing.fit(frame, ["y"])
    other = frame.select(pl.lit("?").alias("new"), "c", "x")
    np.testing.assert_array_equal(fitted.transform(other), fitted.transform(frame))


def test_no_rows_to_transform() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0], "c": ["a", "b"]})
    fitted = Preprocessing.fit(frame)
    found = fitted.transform(frame.head(0))
    assert found.shape == (0, 3)
    assert found.dtype == np.float32


def test_new_values_far_out_are_cut_and_stay_finite() -> None:
    fitted = Preprocessing.fit(pl.DataFrame({"x": [1e-300, 2e-300, 3e-300]}))
    found = fitted.transform(pl.DataFrame({"x": [1e308, -1e308, 2e-300]}))
    assert found[:, 0].tolist() == [BOUND, -BOUND, 0.0]


def test_what_is_left_out_is_told_with_the_reason() -> None:
    rows = 40
    frame = pl.DataFrame(
        {
            "same": [7] * rows,
            "same text": ["x"] * rows,
            "name": [f"person {k}" for k in range(rows)],
            "x": [float(k % 7) for k in range(rows)],
            "empty or 1": [1, None] * (rows // 2),
        }
    )
    fitted = Preprocessing.fit(frame)
    assert fitted.feature_names == ["x", "empty or 1", "empty or 1 is missing"]
    assert {c.name: c.dropped for c in fitted.columns} == {
        "same": "it has the same value in every row",
        "same text": "it has the same value in every row",
        "name": "40 different texts in 40 rows look like an identifier",
        "x": None,
        "empty or 1": None,
    }
    assert fitted.columns[2].became == "left out: 40 different texts in 40 rows look like an identifier"
    assert fitted.notes[2] == "column 'name' is left out: 40 different texts in 40 rows look like an identifier"
    np.testing.assert_array_equal(fitted.transform(frame.select("x", "empty or 1")), fitted.transform(frame))


def test_a_column_that_counts_the_rows_is_mentioned() -> None:
    frame = pl.DataFrame({"id": list(range(100, 140))[::-1], "x": [k % 3 for k in range(40)]})
    assert Preprocessing.fit(frame).notes == [
        "column 'id' counts the rows from 100 to 139; if it is an identifier, leave it out (--ignore 'id')"
    ]
    assert Preprocessing.fit(frame.with_columns(pl.col("id").replace(101, 102))).notes == []


def test_a_stray_word_among_numbers_is_mentioned() -> None:
    frame = pl.DataFrame({"x": [*map(str, [1, 2, 3, 4] * 5), "unknown"]})
    (note,) = Preprocessing.fit(frame).notes
    assert note.startswith("column 'x' is text because of 'unknown' in row 21, while nearly all its other values are")


def test_names_of_features_are_all_different() -> None:
    frame = pl.DataFrame({"c": ["a", "b", None], "c=a": [1, 2, None], "c=a is missing": [1, 2, 4]})
    names = Preprocessing.fit(frame).feature_names
    assert names == ["c=a", "c=a is missing", "c=a is missing_", "c=a_", "c=b", "c is missing"]
