"""Dates, moments and times of day against Python's calendar."""

import math
from datetime import date, datetime, time, timedelta

import numpy as np
import polars as pl
import pytest

from standardised import ATOL, RTOL, column, standardised
from wholebatch.tables import Preprocessing, TableError


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
