"""A table over real ranks: the same rows, preprocessing, digest and errors as of one process, each reading a share."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ranks import run_ranks
from tables_for_runs import small_frame
from wholebatch.runs import Settings
from wholebatch.runs.parts import PARTS
from wholebatch.runs.prepared import Prepared, prepare, prepare_spread
from wholebatch.tables import TableError, shared
from wholebatch.tables.learning import learn_numbers
from wholebatch.tables.looking import look_at

SHARDS = 6  # 1, 2 and 3 ranks divide them
Case = tuple[str, dict[str, Any]]


@dataclass
class Share:
    """What a rank has of a table, as plain values."""

    learned: dict[str, Any]
    target: dict[str, Any]
    digest: str
    shape: tuple[int, int]
    whole: dict[str, list[Any]]
    parts: dict[str, list[Any]]


def share_of(prepared: Prepared) -> Share:
    parts = {name: getattr(prepared, name) for name in PARTS}
    return Share(
        prepared.preprocessing.to_dict() | {"names": prepared.preprocessing.feature_names},
        prepared.target.to_dict(),
        prepared.digest,
        prepared.shape,
        {name: [whole.rows, whole.y, whole.weight] for name, whole in prepared.whole.items()},
        {name: [part.rows, part.x, part.y, part.weight] for name, part in parts.items() if part is not None},
    )


def outcome(source: str, settings: Settings, group: str | None) -> Share | str:
    try:
        return share_of(prepare_spread(source, settings, SHARDS, group))
    except TableError as error:
        return str(error)


def spread(rank: int, cases: list[Case]) -> list[Share | str]:
    shared.GO = 5000  # several goes, as for a large table
    return [outcome(source, Settings(table=source, **more), "world") for source, more in cases]


def compare(cases: list[Case], ranks: int) -> list[Share | str]:
    """Runs every case over ranks and in one process; the latter's outcomes."""
    alone = [outcome(source, Settings(table=source, **more), None) for source, more in cases]
    found = [each.value for each in run_ranks(spread, ranks, cases)]
    for k, expected in enumerate(alone):
        shares = [each[k] for each in found]
        if isinstance(expected, str):
            assert shares == [expected] * ranks, cases[k]
        else:
            compare_shares(shares, expected)
    return alone


def compare_shares(shares: list[Share], expected: Share) -> None:
    for share in shares:
        assert isinstance(share, Share), share
        assert share.learned == expected.learned
        assert (share.target, share.digest, share.shape) == (expected.target, expected.digest, expected.shape)
        assert share.whole.keys() == expected.whole.keys() == share.parts.keys()
        for name, values in expected.whole.items():
            for own, one in zip(share.whole[name], values, strict=True):
                np.testing.assert_array_equal(own, one)
    for name, values in expected.parts.items():
        for k, one in enumerate(values):
            pieces = [share.parts[name][k] for share in shares]
            if one is None:
                assert pieces == [None] * len(shares)
            else:
                assert {piece.dtype for piece in pieces} == {one.dtype}
                np.testing.assert_array_equal(np.concatenate(pieces), one)


def write_all(folder: Path) -> list[str]:
    """The small table in every kind of file."""
    frame = small_frame().with_columns(pl.concat_str(pl.col("color"), pl.lit('\n"hot", ')).alias("color"))
    frame.write_csv(folder / "t.csv")
    frame.write_csv(folder / "t.tsv", separator="\t", line_terminator="\r\n", include_bom=True)
    (folder / "t.csv.gz").write_bytes(gzip.compress((folder / "t.csv").read_bytes()))
    frame.write_parquet(folder / "one.parquet")
    frame.write_parquet(folder / "many[1]*.pq", row_group_size=7)
    return [str(folder / name) for name in ("t.csv", "t.tsv", "t.csv.gz", "one.parquet", "many[1]*.pq")]


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_makes_of_a_table_what_one_process_does(ranks: int, tmp_path: Path) -> None:
    tasks: list[dict[str, Any]] = [
        {"target": ["kind"], "test_fraction": 0.2},
        {"target": ["value"], "weights_column": "weight"},
        {"target": ["up", "red"], "ignore": ["a", "color"], "validation_fraction": 0},
        {"target": ["b"], "drop_missing_target": True},
    ]
    files = write_all(tmp_path)
    cases = [(source, tasks[k]) for n, source in enumerate(files) for k in (0, (n + ranks) % len(tasks))]
    cases += [("iris", {"target": ["species"]}), ("diabetes", {"target": ["progression"]})]
    outcomes = compare(cases, ranks)
    assert all(isinstance(each, Share) for each in outcomes)
    digests = {(str(task), each.digest) for (_, task), each in zip(cases, outcomes, strict=True)}  # type: ignore[union-attr]
    assert len(digests) == len(tasks) + 2, "the kind of file makes no difference, the task does"


def test_the_digest_of_one_shard_is_of_the_rows_and_of_several_over_shards() -> None:
    frame, settings = small_frame(), Settings(table="t", target=("kind",))
    digests = [prepare(frame, settings, shards).digest for shards in (1, 2, 3)]
    assert len(set(digests)) == 3
    prepared = prepare(frame, settings)
    assert prepared.validation is not None
    # As it stands in the folders of runs that were begun before there were shards.
    total = hashlib.sha256(repr(prepared.preprocessing.feature_names).encode())
    for part in (prepared.training, prepared.validation):
        for values in (part.rows, part.x, part.y):
            total.update(repr((values.shape, str(values.dtype))).encode() + values.tobytes())
        total.update(b"-|")
    total.update(b"|")
    assert prepared.digest == digests[0] == total.hexdigest()
    changed = frame.with_columns(pl.when(pl.int_range(pl.len()) == 40).then(7.0).otherwise("a").alias("a"))
    assert prepare(changed, settings, 3).digest != digests[2]


TYPES = pl.DataFrame(
    {
        "whole": [1, 2, None, 4] * 10,
        "small": pl.Series([1, -2, 3, None] * 10, dtype=pl.Int8),
        "decimal": pl.Series(["1.50", "2.25", None, "3.75"] * 10).cast(pl.Decimal(10, 2)),
        "yes": [True, None, False, True] * 10,
        "day": [date(2024, 2, 29), date(1999, 12, 31), None, date(2020, 1, 1)] * 10,
        "moment": [datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC), None, datetime(2020, 1, 1, tzinfo=UTC), None] * 10,
        "clock": [time(1, 2), time(3, 4), None, time(5, 6)] * 10,
        "took": [timedelta(seconds=k * k) for k in range(40)],
        "either": ["01/02/2020", "03/04/2021", None, "05/06/2022"] * 10,
        "sort": pl.Series(["a", "b", None, "c"] * 10, dtype=pl.Categorical),
        "size": pl.Series(["s", "m", "l", None] * 10, dtype=pl.Enum(["s", "m", "l"])),
        "stray": [*map(str, range(19)), "none", *map(str, range(20))],
        "name": [f"person {k}" for k in range(40)],
        "number": range(100, 140),
        "same": [1] * 40,
        "class": pl.Series(["x", "y"] * 20, dtype=pl.Categorical),
    }
)


def test_columns_of_every_type_over_ranks(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    TYPES.write_parquet(path)
    (found,) = compare([(path, {"target": ["class"], "validation_fraction": 0.2})], 3)
    assert isinstance(found, Share)
    assert len(found.learned["notes"]) == 4, found.learned["notes"]


def test_a_record_longer_than_all_that_a_rank_looks_at(tmp_path: Path) -> None:
    long = '"' + "a line\n" * 500 + '"'
    cells = [f"{k},{k % 7},x{k % 2}" for k in range(30)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a,b,c", *cells[:3], f"3,{long},x1", *cells[3:], ""]))
    (found,) = compare([(str(path), {"target": ["c"]})], 3)
    assert isinstance(found, Share)
    assert found.shape == (31, 3)


def test_more_ranks_than_columns_and_rows(tmp_path: Path) -> None:
    narrow, short = str(tmp_path / "n.csv"), str(tmp_path / "s.csv")
    small_frame().select("a", "kind").write_csv(narrow)
    small_frame(8).select("a", "b", "kind").write_csv(short)
    outcomes = compare([(narrow, {"target": ["kind"]}), (short, {"target": ["kind"], "test_fraction": 0.1})], 3)
    assert all(isinstance(each, Share) for each in outcomes)


BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "no value in the target": ("a,b\n" + "1,2\n" * 40 + "1,\n" + "1,3\n" * 40, {"target": ["b"]}),
    "a short line in the last rows": ("a,b,c\n" + "1,2,3\n" * 40 + "1,2\n" + "1,2,3\n", {"target": ["c"]}),
    "a long line": ("a,b\n" + "1,2\n" * 40 + "1,2,3\n" + "1,2\n", {"target": ["b"]}),
    "an open quotation mark": ("a,b\n" + "1,2\n" * 40 + '"1,2\n' + "1,2\n", {"target": ["b"]}),
    "no UTF-8 in the last rows": (b"a,b\n" + b"1,2\n" * 40 + b"\xff,2\n", {"target": ["b"]}),
    "an infinite value to train on": ("a,b\n" + "1,2\n" * 30 + "inf,3\n" + "3,3\n" * 29, {"target": ["b"]}),
    "an infinite value held out": ("a,b\n1,2\n2,3\n" + "1,2\ninf,3\n" * 2 + "4,2\n" * 9, {"target": ["b"]}),
    "two columns without a value": ("a,b,c,d\n" + "NA,1,,2\n" * 20 + "NA,1,,3\n" * 20, {"target": ["d"]}),
    "no column of use": ("a,b\n" + "1,2\n" * 20 + "1,3\n" * 20, {"target": ["b"]}),
    "a negative weight": ("a,b,w\n" + "1,2,1\n2,3,-1\n" * 20, {"target": ["b"], "weights_column": "w"}),
    "no such column to ignore": ("a,b\n" + "1,2\n2,3\n" * 20, {"target": ["b"], "ignore": ["A"]}),
    "too few rows": ("a,b\n1,2\n2,3\n", {"target": ["b"], "test_fraction": 0.5}),
    "no rows": ("a,b\n", {"target": ["b"]}),
    "empty": ("", {"target": ["b"]}),
    "two columns of one name": ("a,a\n1,2\n", {"target": ["a"]}),
    "gzip cut off": (gzip.compress(b"a,b\n" + os.urandom(1000))[:500], {"target": ["b"]}),
}


def test_a_mistake_is_told_in_the_same_words_on_all_ranks(tmp_path: Path) -> None:
    cases: list[Case] = []
    for k, (content, more) in enumerate(BROKEN.values()):
        path = tmp_path / f"{k}.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        cases.append((str(path), more))
    pl.DataFrame({"a": [[1], [2]], "b": [1, 2]}).write_parquet(tmp_path / "lists.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "lists.parquet").read_bytes()[:-20])
    cases += [(str(tmp_path / name), {"target": ["b"]}) for name in ("lists.parquet", "cut.parquet", "not there.csv")]
    outcomes = compare(cases, 2)
    assert [name for name, said in zip(BROKEN, outcomes, strict=False) if not isinstance(said, str)] == []
    assert all(isinstance(said, str) for said in outcomes), "every one of them is a mistake"
    rows = {name: said for name, said in zip(BROKEN, outcomes, strict=False) if " row " in str(said)}
    for name, row in {
        "a short line in the last rows": "in row 41 (line 42)",
        "an infinite value to train on": "in row 31",
        "an infinite value held out": "in row 4",
    }.items():
        assert row in str(rows[name])


def test_what_is_learned_from_a_number_does_not_depend_on_those_beside_it() -> None:
    draw = np.random.default_rng(0)
    for rows in (2, 7, 599, 601, 5000):
        values = draw.standard_normal((rows, 9)) * 10.0 ** draw.integers(-5, 6, 9) + 1e3
        values[draw.random((rows, 9)) < 0.1] = np.nan
        values[0], values[-1] = 1, 2
        seen = [look_at(pl.Series(f"c{k}", values[:, k]).fill_nan(None)) for k in range(9)]
        looks, numbers = [look for look, _ in seen], [of[0] for _, of in seen]
        alone = [learn_numbers([look], [of], alone=False)[0] for look, of in zip(looks, numbers, strict=True)]
        assert learn_numbers(looks, numbers, alone=False) == alone
