"""Every table that preprocessing must refuse, by the sentence that says why."""

import math
from datetime import date

import numpy as np
import polars as pl
import pytest

from wholebatch.tables import Preprocessing, TableError

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
