"""read_table: what the file holds, under its own names; or one sentence that says what is wrong with it."""

import errno
import gzip
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.datasets import load_digits, load_iris

from wholebatch.tables import TableError, read_table


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "whole": [1, None, -3],
            "number": [0.1, 1e300, None],
            "text": ["a", None, 'said "b", c'],
            "day": [date(2024, 2, 29), date(1999, 12, 31), None],
            "moment": [datetime(2024, 2, 29, 1, 2, 3), None, datetime(1999, 12, 31)],
            "yes": [True, False, None],
            "<script>alert(1)</script>": [1, 2, 3],
            " spaced ": [1, 2, 3],
        }
    )


def test_parquet_is_read_as_it_was_written_whatever_its_name(frame: pl.DataFrame, tmp_path: Path) -> None:
    for name in ("table.parquet", "table.pq", "table.csv", "table"):
        frame.write_parquet(tmp_path / name)
        assert_frame_equal(read_table(tmp_path / name), frame)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_text_of_any_separator_gives_the_same_table(frame: pl.DataFrame, tmp_path: Path, separator: str) -> None:
    frame.write_csv(tmp_path / "table.txt", separator=separator)
    found = read_table(str(tmp_path / "table.txt"))
    assert_frame_equal(found, frame)


def test_tsv_is_cut_at_tabs_even_where_commas_are_more(tmp_path: Path) -> None:
    found = read_table(write(tmp_path / "table.tsv", "a,b,c\td\n1,5\t2\n"))
    assert found.columns == ["a,b,c", "d"]


def test_gzipped_text(frame: pl.DataFrame, tmp_path: Path) -> None:
    packed = write(tmp_path / "table.csv.gz", gzip.compress(frame.write_csv().encode()))
    assert_frame_equal(read_table(packed), read_table(write(tmp_path / "table.csv", frame.write_csv())))


def test_names_with_wildcards_are_names(tmp_path: Path) -> None:
    write(tmp_path / "a1.csv", "x\n1\n")
    assert read_table(write(tmp_path / "a[1]*.csv", "x\n2\n")).rows() == [(2,)]
    pl.DataFrame({"x": [3]}).write_parquet(tmp_path / "a1.pq")
    pl.DataFrame({"x": [4]}).write_parquet(tmp_path / "a[1]*.pq")
    assert read_table(tmp_path / "a[1]*.pq").rows() == [(4,)]


def test_a_late_text_makes_a_text_column(tmp_path: Path) -> None:
    lines = "a\n" + "1\n" * 20_000 + "late\n"
    found = read_table(write(tmp_path / "t.csv", lines))
    assert found["a"].dtype == pl.String
    assert found["a"][20_000] == "late"


def test_words_spaces_and_quoted_empty_cells_that_mean_missing(tmp_path: Path) -> None:
    content = 'a, b ,c,d,e\n1, 2.5,x,TRUE,2024-01-02\nNA, ? , NaN ,,""\n"", -3 ,None,false,2024-01-03 \n'
    found = read_table(write(tmp_path / "t.csv", content))
    assert found.columns == ["a", " b ", "c", "d", "e"]
    assert found.to_dict(as_series=False) == {
        "a": [1, None, None],
        " b ": [2.5, None, -3.0],
        "c": ["x", None, None],
        "d": [True, None, False],
        "e": [date(2024, 1, 2), None, date(2024, 1, 3)],
    }


def test_dates_whose_order_is_in_doubt_are_left_to_the_preprocessing(tmp_path: Path) -> None:
    found = read_table(
        write(tmp_path / "t.csv", "a,b\n01/02/2020,2020-01-02T03:04:05Z\n13/02/2020,2021-01-02T03:04:05Z\n")
    )
    assert found["a"].to_list() == ["01/02/2020", "13/02/2020"]
    assert found["b"].to_list() == [
        datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC),
        datetime(2021, 1, 2, 3, 4, 5, tzinfo=UTC),
    ]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    found = read_table(write(tmp_path / "t.csv", "a,b\r\n1,2\r\n\r\n3,\r\n,,\r\n".replace(",,", ",")))
    assert found.to_dict(as_series=False) == {"a": [1, 3], "b": [2, None]}


def test_lines_that_end_in_a_carriage_return(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "t.csv", "a,b\r1,2\r3,4\r")).rows() == [(1, 2), (3, 4)]


def test_a_very_long_text_beside_an_empty_cell(tmp_path: Path) -> None:
    long = "x" * 200_000  # beyond what Python's csv module takes
    assert read_table(write(tmp_path / "t.csv", f"a,b\n{long},1\ny,\n")).rows() == [(long, 1), ("y", None)]


def test_decimal_commas_between_semicolons(tmp_path: Path) -> None:
    found = read_table(write(tmp_path / "t.csv", "a;b;c\n1,5;2;x,y\n-3,25;1,0;z\n"))
    assert found.to_dict(as_series=False) == {"a": [1.5, -3.25], "b": [2.0, 1.0], "c": ["x,y", "z"]}


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "t.csv", b"\xef\xbb\xbfa,b\n1,2\n")).columns == ["a", "b"]


def test_columns_to_keep_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "zip,flag,n\n007,True,1\n010, NA ,2\n")
    assert read_table(path)["zip"].to_list() == [7, 10]
    found = read_table(path, text=["zip", "flag", "not there"])
    assert found.to_dict(as_series=False) == {"zip": ["007", "010"], "flag": ["True", None], "n": [1, 2]}


def test_bundled_sets() -> None:
    digits = read_table("digits")
    assert digits.columns == [f"pixel_{row}_{column}" for row in range(8) for column in range(8)] + ["digit"]
    assert (digits.drop("digit").to_numpy() == load_digits().data).all()
    assert digits["digit"].to_list() == load_digits().target.tolist()
    iris = read_table("iris")
    assert iris["species"].to_list() == load_iris().target_names[load_iris().target].tolist()
    shapes = {name: read_table(name).shape for name in ("wine", "breast_cancer", "diabetes")}
    assert shapes == {"wine": (178, 14), "breast_cancer": (569, 31), "diabetes": (442, 11)}


def test_a_file_of_a_bundled_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"mine": [1]}).write_parquet("digits")
    assert read_table("digits").columns == ["mine"]


PARQUET = pl.DataFrame({"a": range(100)})

BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("t.csv", b"", r"is empty: it has no header"),
    "blank": ("t.csv", "\n\n", r"is empty: it has no header"),
    "header only": ("t.csv", "a,b\n", r"has no rows, only a header of 2"),
    "no values": ("t.csv", "a,b\n,\n,\n", r"has no rows"),
    "two of one name": ("t.csv", "a,b,a,c,b\n1,2,3,4,5\n", r"has columns 'a', 'b' more than once; give each"),
    "two of one name, quoted": ("t.csv", '"a",b,a\n1,2,3\n', r"has column 'a' more than once"),
    "a long line": ("t.csv", "a,b\n1,2\n3,4,5\n6,7\n", r"has 3 fields in row 2 \(line 3\), the header has 2"),
    "a short line": ("t.csv", "a,b\n1,2\n3\n6,7\n", r"has 1 field in row 2 \(line 3\), the header has 2"),
    "a short last line": ("t.csv", "a,b,c\n1,2,3\n4,5", r"has 2 fields in row 2 \(line 3\), the header has 3"),
    "a long line after a text of two lines": ("t.csv", 'a,b\n"x\ny",2\n3,4,5\n', r"has 3 fields in row 2 \(line 4\)"),
    "an open quotation mark": ("t.csv", 'a,b\n"x,2\n3,4\n', r"'.*t\.csv' (is broken|has 1 field in)"),
    "latin-1": ("t.csv", "a,b\né,2\n".encode("latin-1"), r"(cannot be read|is broken).*utf-?8.*; save it as UTF-8"),
    "utf-16": ("t.csv", "a,b\n1,2\n".encode("utf-16"), r"is UTF-16 text; save it as UTF-8"),
    "unknown kind": ("t.xlsx", b"PK\x03\x04", r"is of no kind known here; its name should end in one of \.csv"),
    "no suffix": ("t", "a\n1\n", r"is of no kind known here"),
    "parquet cut off": ("t.parquet", b"PAR1", r"cannot be read"),
    "csv called parquet": ("t.parquet", "a\n1\n", r"is called Parquet but does not begin like one"),
    "gzip cut off": ("t.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 5000)[:40], r"cannot be read|is broken"),
    "no gzip at all": ("t.csv.gz", b"\x1f\x8b\x00\x00nonsense", r"cannot be read|is broken"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        read_table(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_parquet_file(tmp_path: Path, share: float) -> None:
    PARQUET.write_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(TableError, match=r"t\.parquet' cannot be read: parquet: "):
        read_table(write(tmp_path / "t.parquet", content[: int(len(content) * share)]))


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    PARQUET.head(0).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(TableError, match="has no rows, only a header of 1"):
        read_table(tmp_path / "t.parquet")


def test_no_such_file_and_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"there is no file '.*missing\.csv'$"):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(TableError, match="there is no file 'digit'; did you mean 'digits'"):
        read_table("digit")
    with pytest.raises(TableError, match="there is no file 'qqqq'; bundled sets are digits, iris"):
        read_table("qqqq")
    with pytest.raises(TableError, match="is a folder; name the CSV or Parquet file in it"):
        read_table(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:  # permissions do not stop root, who runs many a test
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    path = write(tmp_path / "t.csv", "a\n1\n")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TableError, match=r"t\.csv' cannot be read: Permission denied"):
        read_table(path)
