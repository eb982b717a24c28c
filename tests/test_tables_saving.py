"""What is kept of a preprocessing gives the same bits again; what is not a preprocessing is refused."""

import copy
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wholebatch.tables import Preprocessing, TableError
from wholebatch.tables.values import as_text, missing_rows

NUMBERS = st.floats(allow_infinity=False) | st.none()
WHOLE = st.integers(-(2**63), 2**63 - 1) | st.none()
TEXTS = st.sampled_from(["a", "b", " a ", "NA", "", "é", "0", "1", "<script>", "\x00", "nan", "𝔘"]) | st.none()
TRUTHS = st.booleans() | st.none()
MOMENTS = st.datetimes() | st.none()
DAYS = st.dates() | st.none()
TYPES: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "number": (pl.Float64(), NUMBERS),
    "small": (pl.Float32(), st.floats(allow_infinity=False, width=32) | st.none()),
    "whole": (pl.Int64(), WHOLE),
    "text": (pl.String(), TEXTS),
    "any text": (pl.String(), st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.none()),
    "truth": (pl.Boolean(), TRUTHS),
    "moment": (pl.Datetime("us"), MOMENTS),
    "zoned": (pl.Datetime("us", "UTC"), st.datetimes(timezones=st.just(UTC)) | st.none()),
    "day": (pl.Date(), DAYS),
    "time": (pl.Time(), st.times() | st.none()),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A table to learn from and another with the same columns, in another order, of other values."""
    kinds = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=6))
    heights = [draw(st.integers(1, 20)), draw(st.integers(0, 20))]  # 20 different texts are no identifiers yet
    frames = []
    for height in heights:
        columns = {}
        for k, kind in enumerate(kinds):
            dtype, values = TYPES[kind]
            columns[f"{kind} {k}"] = pl.Series(
                draw(st.lists(values, min_size=height, max_size=height)), dtype=dtype, strict=False
            )
        frames.append(pl.DataFrame(columns))
    order = draw(st.permutations(frames[0].columns))
    return frames[0], frames[1].select(order)


def values_of(series: pl.Series) -> pl.Series:
    """The values as a person counts them."""
    text = series.dtype == pl.String
    return as_text(series) if text else series.fill_nan(None) if series.dtype.is_float() else series


@settings(max_examples=100)
@given(tables=tables(), data=st.data())
def test_whatever_the_table(tables: tuple[pl.DataFrame, pl.DataFrame], data: st.DataObject) -> None:
    """Finite, float32, one name per output; the same bits after saving, by rows, and in another order of columns."""
    train, new = tables
    empty = [name for name in train.columns if missing_rows(train[name]).all()]
    if empty:
        with pytest.raises(TableError, match=f"{re.escape(repr(empty[0]))}.* no value in any"):
            Preprocessing.fit(train)
        train = train.drop(empty)
    if all(train.height > 1 and values_of(train[name]).n_unique() == 1 for name in train.columns):
        with pytest.raises(TableError, match="no column is left to learn from"):
            Preprocessing.fit(train)
        return
    fitted = Preprocessing.fit(train)
    loaded = Preprocessing.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert loaded.to_dict() == fitted.to_dict()
    assert loaded.feature_names == fitted.feature_names
    assert len(set(fitted.feature_names)) == len(fitted.feature_names)
    assert (loaded.columns, loaded.notes) == (fitted.columns, fitted.notes)
    assert sorted(name for c in fitted.columns for name in c.features) == sorted(fitted.feature_names)
    for frame in (train, new):
        found = fitted.transform(frame)
        assert found.shape == (frame.height, len(fitted.feature_names))
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert np.isfinite(found).all()
        assert loaded.transform(frame).tobytes() == found.tobytes()
        rows = data.draw(st.permutations(range(frame.height)))
        assert fitted.transform(frame[rows]).tobytes() == found[rows].tobytes()


@given(
    values=st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=2, max_size=50), offset=st.sampled_from([0.0, 1e4, 1e8])
)
def test_the_training_table_has_mean_0_and_variance_1(values: list[float | None], offset: float) -> None:
    values = [None if v is None else v + offset for v in values]
    present = [v for v in values if v is not None]
    if not present or (len(set(present)) == 1 and len(present) == len(values)):
        return
    x = np.array([np.nan if v is None else v for v in values])
    spread = np.where(np.isnan(x), np.nanmedian(x), x).std()
    found = (
        Preprocessing.fit(pl.DataFrame({"x": values})).transform(pl.DataFrame({"x": values}))[:, 0].astype(np.float64)
    )
    if spread <= 1e-6 * np.abs(present).max():  # nearly constant: what is left of it is rounding, but never large
        assert np.abs(found).max() <= np.sqrt(len(values)) * (1 + 1e-6)
        return
    # float32 rounds each of n values by 2^-24 of at most sqrt(n)
    assert abs(found.mean()) < 1e-6 + 2.0**-24 * np.sqrt(len(values))
    assert abs((found**2).mean() - 1) < 1e-6


FRAME = pl.DataFrame(
    {
        "x": [1.0, None, 4.0, 2.0],
        "c": ["a", "b", None, "a"],
        "t": [datetime(2020, 1, 1), datetime(2021, 5, 6), None, datetime(2022, 1, 1)],
        "same": [1, 1, 1, 1],
    }
)


def drop(name: str) -> Callable[[Any], Any]:
    return lambda content: content.pop(name)


CORRUPT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a field is missing": (drop("columns"), r"columns: Field required"),
    "a field too many": (lambda c: c.update(run="rm -rf"), r"run: Extra inputs are not permitted"),
    "text for a number": (
        lambda c: c["numbers"][0].update(fill="1"),
        r"numbers\.0\.fill: Input should be a valid number",
    ),
    "nan": (lambda c: c["numbers"][0].update(fill=float("nan")), r"numbers\.0\.fill: Input should be a finite number"),
    "no spread": (
        lambda c: c["numbers"][0]["scale"].update(std=0.0),
        r"numbers\.0\.scale\.std: Input should be greater",
    ),
    "no such part": (lambda c: c["numbers"][1].update(part="__class__"), r"column 't' has no part '__class__'"),
    "a part of a number": (lambda c: c["numbers"][0].update(part="year"), r"column 'x' has no part 'year'"),
    "a date without a part": (lambda c: c["numbers"][1].update(part=None), r"column 't' has no part None"),
    "a column of no name": (lambda c: c["numbers"][0].update(column="z"), r"columns and features do not agree"),
    "a column that was left out": (
        lambda c: c["columns"][0].update(dropped="why"),
        r"columns and features do not agree",
    ),
    "a column twice": (lambda c: c["columns"].append(c["columns"][0]), r"two columns have one name"),
    "a feature twice": (lambda c: c["numbers"].append(c["numbers"][0]), r"one feature stands twice"),
    "an encoder twice": (lambda c: c["categories"].append(c["categories"][0]), r"one feature stands twice"),
    "a category twice": (lambda c: c["categories"][0].update(categories=["a", "a"]), r"'c' has one category twice"),
    "disorder": (lambda c: c["categories"][0].update(categories=["b", "a"]), r"'c' are not in order"),
    "no category": (lambda c: c["categories"][0].update(categories=[]), r"'c' has no categories"),
    "a number of a category": (lambda c: c["numbers"][0].update(column="c"), r"columns and features|is both"),
    "an unknown layout": (lambda c: c["columns"][2].update(layout="%c"), r"'t' has dates of no known layout: '%c'"),
    "a layout of numbers": (lambda c: c["columns"][0].update(layout="%d/%m/%Y"), r"'x' has dates of no known layout"),
    "an unknown kind": (lambda c: c["columns"][0].update(kind="code"), r"columns\.0\.kind: Input should be 'number'"),
    "nothing": (lambda c: c.update(columns=[], numbers=[], categories=[]), r"there is no feature"),
}


@pytest.mark.parametrize(("damage", "message"), CORRUPT.values(), ids=CORRUPT.keys())
def test_corrupt_content_is_refused(damage: Callable[[Any], Any], message: str) -> None:
    content = copy.deepcopy(Preprocessing.fit(FRAME).to_dict())
    damage(content)
    with pytest.raises(ValueError, match=message) as caught:
        Preprocessing.from_dict(content)
    assert str(caught.value).startswith("the preprocessing is corrupt or not of this version: ")


@pytest.mark.parametrize("content", [None, [], "x", 3, {}, {"task": "regression"}])
def test_foreign_content_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match="the preprocessing is corrupt or not of this version"):
        Preprocessing.from_dict(content)
