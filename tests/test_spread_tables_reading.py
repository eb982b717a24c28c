"""A table read by real ranks: each reads its share of the bytes, and all have the table that one process reads."""

from __future__ import annotations

import gzip
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ranks import run_ranks
from tables_for_runs import small_frame
from wholebatch.runs import Settings
from wholebatch.runs.prepared import prepare_spread
from wholebatch.tables import TableError, portions, read_table, together
from wholebatch.tables.together import read_together

SHARDS = 6


def own_folder(rank: int, folder: str) -> str:
    os.chdir(Path(folder) / str(rank))
    try:
        return str(read_together("t.csv", "world").height)
    except TableError as error:
        return str(error)


def test_a_file_that_one_rank_lacks_or_has_another_of(tmp_path: Path) -> None:
    content = small_frame().write_csv()
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / "0" / "t.csv").write_text(content)
    said = [each.value for each in run_ranks(own_folder, 2, str(tmp_path))]
    assert said == ["rank 1: there is no file 't.csv'"] * 2
    for other, differ in ((content[:-9], f"{len(content) - 9} bytes"), (content[::-1], "as many of another content")):
        (tmp_path / "1" / "t.csv").write_text(other)
        said = [each.value for each in run_ranks(own_folder, 2, str(tmp_path))]
        expected = f"'t.csv' is not the same file for all ranks: {len(content)} bytes for rank 0, {differ} for rank 1; "
        assert said == [expected + "give every rank the same file"] * 2


def make_text(seed: int) -> bytes:
    """Cells of all sorts, records over several lines, now and then a mistake."""
    draw = random.Random(seed)
    apart, end = draw.choice(",\t;|"), draw.choice(["\n", "\n", "\r\n", "\r"])
    width, wild = draw.randint(1, 4), draw.random() < 0.3
    inner = ["a", apart, '""', " ", "ü", "1"] + ([] if end == "\r" else ["\n", "\r\n"])
    plain = ["1", "-3", "0.5", "", "NA", "true", "2024-01-05", "é", "x y"]
    loose = ['5" pipe', ' "q"', '"a"b', 'x""y', '""'] if wild else plain

    def cell() -> str:
        kind = draw.random()
        if kind < 0.3:
            return '"' + "".join(draw.choice(inner) for _ in range(draw.randint(0, 6))) + '"'
        return draw.choice(loose if kind < 0.35 else plain)

    lines = [apart.join(f'"c{k}"' if draw.random() < 0.2 else f"c{k}" for k in range(width))]
    for _ in range(draw.randint(0, 40)):
        cells = [cell() for _ in range(width)]
        cells = cells[:-1] or cells if draw.random() < 0.01 else cells
        lines += [apart.join(cells), *([""] if draw.random() < 0.05 else [])]
    text = end.join(lines) + (end if draw.random() < 0.8 else "")
    return (b"\xef\xbb\xbf" if draw.random() < 0.2 else b"") + text.encode()


TEXTS = 50


def read_texts(rank: int, folder: str) -> tuple[list[Any], int]:
    cut, read = [0], portions.read_portion

    def count(*arguments: Any) -> pl.DataFrame | None:
        portion = read(*arguments)
        cut[0] += portion is not None
        return portion

    together.read_portion = count
    portions.BLOCK = 5  # several blocks, as of a large file
    return [as_read(lambda k=k: whole(f"{folder}/{k}.csv")) for k in range(TEXTS)], cut[0]


def whole(path: str) -> pl.DataFrame:
    table = read_together(path, "world")
    return table.outline(table.names)


def as_read(read: Callable[[], pl.DataFrame]) -> tuple[Any, ...] | str:
    try:
        frame = read()
        return dict(frame.schema), frame.rows()
    except TableError as error:
        return str(error)


def test_text_that_is_cut_anywhere_gives_the_table_of_the_whole(tmp_path: Path) -> None:
    for k in range(TEXTS):
        (tmp_path / f"{k}.csv").write_bytes(make_text(k))
    expected = [as_read(lambda k=k: read_table(tmp_path / f"{k}.csv")) for k in range(TEXTS)]
    for outcome in run_ranks(read_texts, 3, str(tmp_path)):
        found, cut = outcome.value
        assert found == expected
        assert cut > TEXTS / 3, "most are cut, not read by the first rank"
    kinds = [type(each) for each in expected]
    assert kinds.count(tuple) > TEXTS / 4
    assert kinds.count(str) > 3


def count_read(rank: int, paths: list[str]) -> list[int]:
    """Bytes that this rank reads of each file, by the system's count."""

    counts = []
    for path in [paths[0], *paths]:  # the first one twice: much is read once only
        before = bytes_read()
        prepare_spread(path, Settings(table=path, target=("y",)), SHARDS, "world")
        counts.append(bytes_read() - before)
    return counts[1:]


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux tells them")
def test_no_rank_reads_more_than_its_share(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    frame = pl.DataFrame({f"c{k}": draw.standard_normal(20_000) for k in range(11)})
    frame = frame.with_columns((pl.col("c0") > 0).alias("y"), pl.lit("two\nlines").alias("text"))
    names = ["t.csv", "one.parquet", "many.parquet", "t.csv.gz"]
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "one.parquet", row_group_size=frame.height)
    frame.write_parquet(tmp_path / "many.parquet", row_group_size=1000)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes(), 1))
    paths = [str(tmp_path / name) for name in names]
    counts = [each.value for each in run_ranks(count_read, 3, paths)]
    for k, path in enumerate(paths):
        size = Path(path).stat().st_size
        read = [each[k] for each in counts]
        if path.endswith(".gz"):
            assert read[0] >= size, "it cannot be cut"
            assert max(read[1:]) < 0.2 * size
        else:
            assert sum(read) >= 0.99 * size, "the system counts what is read"
            # A third; the header and the first 64 KiB, which say how the file is cut; columns are no even thirds.
            assert max(read) < (0.42 if path.endswith("parquet") else 0.36) * size + 200_000


def fails(rank: int, path: str, how: str) -> None:
    def fail(*_: object) -> None:
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("no room")

    if rank == 1:
        portions.parse_text = fail  # type: ignore[assignment]
    prepare_spread(path, Settings(table=path, target=("kind",)), SHARDS, "world")


@pytest.mark.parametrize(("how", "said"), [("dies", "rank 1: process "), ("raises", "raised MemoryError: no room")])
def test_a_rank_that_fails_while_it_reads_is_told_to_the_others(tmp_path: Path, how: str, said: str) -> None:
    small_frame().write_csv(tmp_path / "t.csv")
    outcomes = run_ranks(fails, 3, str(tmp_path / "t.csv"), how, timeout=30)
    for other in (outcomes[0], outcomes[2]):
        assert other.error.startswith("MeetingError: messages between ranks stopped")
        assert said in other.error
