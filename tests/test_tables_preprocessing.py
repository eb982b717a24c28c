"""Preprocessing against formulas written out here in float64, and every table it must refuse."""

import math
from datetime import date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from wholebatch.tables import Preprocessing, TableError, read_table
from wholebatch.tables.encoders import MAX_CATEGORIES
from wholebatch.tables.scaling import BOUND

# The result is rounded to float32: 2^-24 of the value, doubled here. What float64 loses before that is a few 2^-53 of
# (largest value / standard deviation), which is below 100 where ATOL is used: 1e-14 at most, times a hundred.
RTOL, ATOL = 2.0**-23, 1e-12


def standardised(values: list[float | None]) -> np.ndarray:
    """(x or median - mean) / std, in float64, by the textbook."""
    x = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    x = np.where(np.isnan(x), np.nanmedian(x), x)
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean())


def column(frame: pl.DataFrame, name: str, fitted: Preprocessing | None = None) -> np.ndarray:
    """One output column by its name."""
    fitted = fitted or Preprocessing.fit(frame)
    return fitted.transform(frame)[:, fitted.feature_names.index(name)]


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


def parts_of(moment: datetime) -> dict[str, float]:
    """The parts of a moment, by Python's calendar."""
    hour = 2 * math.pi * (moment.hour + moment.minute / 60) / 24
    month, weekday = 2 * math.pi * (moment.month - 1) / 12, 2 * math.pi * moment.weekday() / 7
    return {
        "days": (moment - datetime(1970, 1, 1)).total_seconds() / 86400,
        "year": float(moment.year),
        "month_sin": math.sin(month),
        "month_cos": math.cos(month),
        "weekday_sin": math.sin(weekday),
        "weekday_cos": math.cos(weekday),
        "hour_sin": math.sin(hour),
        "hour_cos": math.cos(hour),
    }


MOMENTS = [
    datetime(2024, 2, 29, 13, 30),
    datetime(1969, 12, 31, 23, 59, 59),
    datetime(2000, 7, 1, 6),
    datetime(2024, 3, 1),
]


def test_dates_become_their_parts() -> None:
    frame = pl.DataFrame({"t": [*MOMENTS, None]})
    fitted = Preprocessing.fit(frame)
    parts = [parts_of(moment) for moment in MOMENTS]
    assert fitted.feature_names == [*(f"t.{part}" for part in parts[0]), "t is missing"]
    for part in parts[0]:
        expected = standardised([*(p[part] for p in parts), None])
        np.testing.assert_allclose(column(frame, f"t.{part}", fitted), expected, rtol=RTOL, atol=ATOL)
    assert column(frame, "t is missing", fitted).tolist() == [0, 0, 0, 0, 1]
    assert fitted.columns[0].became.startswith("standardised days, year, month_sin, ")


def test_days_have_no_hours_and_parts_that_never_change_are_left_out() -> None:
    fitted = Preprocessing.fit(pl.DataFrame({"t": [date(2024, 5, 6), date(2024, 5, 7), date(2024, 5, 8)]}))
    assert fitted.feature_names == ["t.days", "t.weekday_sin", "t.weekday_cos"]


def test_the_same_moment_in_any_type_and_zone_gives_the_same_numbers() -> None:
    naive = pl.DataFrame({"t": MOMENTS})
    fitted = Preprocessing.fit(naive)
    expected = fitted.transform(naive)
    zoned = naive.select(pl.col("t").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Kolkata"))
    assert zoned["t"][0].hour == (MOMENTS[0] + timedelta(hours=5, minutes=30)).hour
    as_text = pl.DataFrame({"t": [f" {m:%Y-%m-%d %H:%M:%S}" for m in MOMENTS]})
    nanoseconds = naive.cast(pl.Datetime("ns"))
    for frame in (zoned, as_text, nanoseconds):
        np.testing.assert_array_equal(fitted.transform(frame), expected)


def test_times_of_day() -> None:
    frame = pl.DataFrame({"t": [time(0), time(6), time(12), time(18)]})
    fitted = Preprocessing.fit(frame)
    assert fitted.feature_names == ["t.days", "t.hour_sin", "t.hour_cos"]
    np.testing.assert_allclose(column(frame, "t.hour_sin"), standardised([0, 1, 0, -1]), atol=ATOL)


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


REFUSED: dict[str, tuple[pl.DataFrame, str]] = {
    "infinite": (pl.DataFrame({"x": [1.0, math.nan, -math.inf]}), r"'x' has an infinite value \(-inf\) in row 3"),
    "all missing": (
        pl.DataFrame({"x": [1, 2], "gone": [None, None], "words": ["NA", ""], "nan": [math.nan] * 2}),
        r"columns 'gone', 'words', 'nan' have no value in any of the 2 rows; leave them out \(--ignore 'gone' --ignore",
    ),
    "one all missing": (
        pl.DataFrame({"x": [1, 2], "g": [None, None]}),
        r"'g' has no value .*leave it out \(--ignore 'g'",
    ),
    "lists": (pl.DataFrame({"x": [[1], [2]]}), r"'x' holds values of type List\(Int64\).*--ignore 'x'"),
    "structures": (pl.DataFrame({"x": [{"a": 1}, {"a": 2}]}), r"'x' holds values of type Struct"),
    "bytes": (pl.DataFrame({"x": [b"1", b"2"]}), r"'x' holds values of type Binary"),
    "nothing of use": (
        pl.DataFrame({"x": [1, 1], "y": [2, 2]}),
        r"no column is left to learn from: column 'x' is left out",
    ),
    "no columns": (pl.DataFrame(), r"the table has no rows"),
    "no rows": (pl.DataFrame({"x": []}), r"the table has no rows"),
}


@pytest.mark.parametrize(("frame", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_tables_there_is_nothing_to_learn_from(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(TableError, match=message):
        Preprocessing.fit(frame)


def test_a_table_of_targets_only() -> None:
    with pytest.raises(TableError, match="no column is left to learn from: there is no column besides the target"):
        Preprocessing.fit(pl.DataFrame({"y": [1, 2]}), ["y"])


def test_leaving_out_a_column_that_is_not_there() -> None:
    with pytest.raises(
        TableError, match=r"no column 'idd', which was to be left out of the features; did you mean 'Id'\?"
    ):
        Preprocessing.fit(pl.DataFrame({"Id": [1, 2]}), ["idd"])


TRAINED = pl.DataFrame(
    {
        "x": [1.0, 2.0, 4.0],
        "n": [1, 2, 5],
        "c": ["a", "b", "a"],
        "t": [date(2020, 1, 1), date(2021, 2, 2), date(2022, 1, 1)],
    }
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": pl.lit("many")}, r"column 'x' has 'many' in row 1 \(3 such values\), which is not a number"),
        ({"n": pl.Series(["1", " 2 ", "1O"])}, r"column 'n' has '1O' in row 3, which is not a number"),
        ({"x": pl.lit(date(2020, 1, 1))}, r"column 'x' holds dates where numbers are needed"),
        ({"x": pl.Series([[1], [2], [3]])}, r"column 'x' holds values of type List\(Int64\) where numbers are needed"),
        ({"x": pl.Series([1.0, math.inf, -math.inf])}, r"column 'x' has an infinite value \(inf\) in row 2"),
        ({"n": pl.Series(["1", "inf", "2"])}, r"column 'n' has an infinite value \(inf\) in row 2"),
        ({"t": pl.Series(["2020-01-01", "soon", None])}, r"column 't' has 'soon' in row 2, which is not a date"),
        (
            {"t": pl.Series(["soon", "soon", None])},
            r"column 't' has 'soon' in row 1 \(2 such values\), which is not a date",
        ),
        ({"t": pl.lit(3)}, r"column 't' holds numbers where dates are needed"),
        ({"c": pl.Series([[1], [2], [3]])}, r"column 'c' holds values of type List\(Int64\) where text is needed"),
    ],
)
def test_new_tables_that_do_not_fit(change: dict[str, pl.Expr | pl.Series], message: str) -> None:
    fitted = Preprocessing.fit(TRAINED)
    with pytest.raises(TableError, match=message):
        fitted.transform(TRAINED.with_columns(**change))


def test_every_missing_column_is_named() -> None:
    fitted = Preprocessing.fit(TRAINED)
    with pytest.raises(
        TableError, match="the table has no columns 'x', 't', which the model was trained on; it has 'n', 'c'"
    ):
        fitted.transform(TRAINED.select("n", "c"))
    wide = pl.DataFrame({f"v{k}": [1.0, 2.0] for k in range(30)})
    with pytest.raises(TableError, match=", ".join(f"'v{k}'" for k in range(1, 30))):
        Preprocessing.fit(wide).transform(wide.select("v0"))


def test_a_column_without_values_is_filled_once_the_model_is_trained() -> None:
    fitted = Preprocessing.fit(TRAINED)
    for dtype in (pl.Null, pl.String):
        nothing = pl.DataFrame({name: pl.Series([None, None], dtype=dtype) for name in TRAINED.columns})
        found = fitted.transform(nothing)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("mark", ["/", ".", "-"])
@pytest.mark.parametrize(("pattern", "other"), [("%d{0}%m{0}%Y", "%m{0}%d{0}%Y"), ("%m{0}%d{0}%Y", "%d{0}%m{0}%Y")])
@pytest.mark.parametrize("clock", ["", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p"])
def test_the_order_of_day_and_month_is_learned_and_kept(mark: str, pattern: str, other: str, clock: str) -> None:
    pattern, other = pattern.format(mark), other.format(mark)
    moments = [datetime(2024, 2, 29, 13, 30), datetime(2023, 3, 4, 5, 6), datetime(1999, 12, 31, 23, 59)]
    if not clock:
        moments = [datetime(m.year, m.month, m.day) for m in moments]
    plain = pl.DataFrame({"t": moments})
    written = pl.DataFrame({"t": [m.strftime(pattern + clock) for m in moments]})
    fitted = Preprocessing.fit(written)
    assert fitted.columns[0].kind == "date"
    assert fitted.notes == []
    np.testing.assert_array_equal(fitted.transform(written), Preprocessing.fit(plain).transform(plain))
    # The second row alone, 3 or 4 March or April, would not say which comes first.
    np.testing.assert_array_equal(fitted.transform(written[1:2]), fitted.transform(plain)[1:2])
    loaded = Preprocessing.from_dict(fitted.to_dict())
    np.testing.assert_array_equal(loaded.transform(written), fitted.transform(written))
    wrong = pl.DataFrame({"t": [moments[0].strftime(other + clock)]})
    example = datetime(2031, 12, 24, 18, 30).strftime(pattern + clock)
    with pytest.raises(TableError, match=rf"in row 1, which is not a date \(write it as {example}\)"):
        fitted.transform(wrong)


def test_an_order_of_day_and_month_that_nothing_settles_is_mentioned() -> None:
    fitted = Preprocessing.fit(pl.DataFrame({"t": ["03/04/2020", None, "12/11/2021"]}))
    assert "t.month_sin" in fitted.feature_names
    (note,) = fitted.notes
    assert note.startswith(
        "column 't' has dates whose day and month could be either way round; the day is taken to come"
    )
    days_first = Preprocessing.fit(pl.DataFrame({"t": [date(2020, 4, 3), None, date(2021, 11, 12)]}))
    assert fitted.to_dict()["numbers"] == days_first.to_dict()["numbers"]


def test_dates_in_a_text_column_that_begin_with_the_year() -> None:
    written = pl.DataFrame({"t": ["2024-02-29 13:30:00", "NA", "2023-03-04"]})
    plain = pl.DataFrame({"t": [datetime(2024, 2, 29, 13, 30), None, datetime(2023, 3, 4)]})
    fitted = Preprocessing.fit(written)
    assert fitted.to_dict() == Preprocessing.fit(plain).to_dict()
    np.testing.assert_array_equal(fitted.transform(written), fitted.transform(plain))


def test_text_that_only_looks_like_dates_stays_text() -> None:
    for texts in (["13/13/2020", "01/01/2020"], ["2020-13-01", "2020-01-01"], ["1-2", "3-4"], ["10:30", "11:45"]):
        assert Preprocessing.fit(pl.DataFrame({"t": texts})).columns[0].kind == "category"
