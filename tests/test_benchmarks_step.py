"""The benchmark of a step measures what it says, and names what it leaves out. No speed is asserted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import machine, precision_steps, ratios
from benchmarks.cores import usable
from benchmarks.limits import Limits
from benchmarks.rounds import Contender, Timings
from benchmarks.shapes import SHAPES, Shape
from benchmarks.talk import Talk
from measuring import run
from wholebatch.kernels import native_available, product_unit

KEYS = {"shape", "system", "norm", "threads", "median_us", "p20_us", "p80_us"}
TINY = ["step", "--shapes", "A", "--threads", "1", "--norms", "none", "--repeats", "3"]
needs_engine = pytest.mark.skipif(not native_available(), reason="the compiled part is missing")


@needs_engine
def test_a_run_writes_rows_and_tables_and_names_a_missing_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "jax.py").write_text("raise ImportError('no such library here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows_path, markdown = tmp_path / "rows.json", tmp_path / "step.md"
    options = ["--norms", "batch,none", "--peers", "jax,sklearn", "--json", rows_path, "--markdown", markdown]
    assert run(*TINY, *options) == 0
    rows = json.loads(rows_path.read_text())
    expected = {("wholebatch", "batch"), ("wholebatch", "none"), ("sklearn", "none")}
    assert {(row["system"], row["norm"]) for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert set(row) == KEYS
        assert (row["shape"], row["threads"]) == ("A", 1)
        times = [row["p20_us"], row["median_us"], row["p80_us"]]
        assert all(math.isfinite(t) and t > 0 for t in times)
        assert times == sorted(times)
    out, err = capsys.readouterr()
    missing = "jax is left out: it cannot be imported (no such library here); pip install 'wholebatch[benchmarks]'"
    notes = [line for line in err.splitlines() if "others use the machine" not in line]  # which may be so
    assert notes == [f"note: {missing}"]
    for words in ("A: 64 x [20, 20, 20, 20, 10]", "instruction set", "memory bandwidth", "at most 1.15"):
        assert words in out
        assert words in markdown.read_text()
    assert missing in markdown.read_text()
    assert sorted(p.name for p in tmp_path.glob("*.*") if p.name != "jax.py") == ["rows.json", "step.md"]


@pytest.mark.skipif(product_unit("high") is None, reason="the processor has no unit for bfloat16 that pays")
def test_lower_precisions_have_rows_and_a_table_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows_path = tmp_path / "rows.json"
    assert run(*TINY, "--peers", "sklearn", "--precision", "high,medium", "--json", rows_path) == 0
    rows = json.loads(rows_path.read_text())
    assert {row["system"] for row in rows} == {"wholebatch", "sklearn", "wholebatch-high", "wholebatch-medium"}
    assert len(rows) == 4
    plain, rounded = capsys.readouterr().out.split("by precision of the products")
    assert "sklearn" not in rounded.split("Times are")[0]
    assert "wholebatch-" not in plain.split("A: ")[1]
    for name in ("wholebatch-high", "wholebatch-medium"):
        assert name in rounded


def test_how_precisions_compare_by_hand():
    seconds = {"wholebatch": 4e-3, "wholebatch-medium": 1e-3, "torch": 8e-3, "torch-medium": 2e-3, "jax": 1e-3}
    timings = Timings({Contender("A", name, "batch", 1): [value] for name, value in seconds.items()})
    timings.notes = dict.fromkeys(timings.seconds, "")
    rows = precision_steps.times(SHAPES["A"], timings).rows
    assert [(row[1], *row[-2:]) for row in rows] == [
        ("wholebatch-medium", "4.00", ""),
        ("torch-medium", "4.00", "0.50"),
        ("wholebatch", "", ""),
        ("torch", "", "0.50"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shapes", "A,G"), ("unknown shape 'G'", "A, B, C, D, E, F")),
        (("--peers", "keras"), ("unknown peer 'keras'", "torch, compile, jax, jax-scan, sklearn", "none alone")),
        (("--peers", "torch,none"), ("unknown peer 'none'", "none alone")),
        (("--norms", "group"), ("unknown norm 'group'", "batch, layer, none")),
        (("--precision", "low"), ("unknown precision 'low'", "highest, high, medium")),
        (("--threads", "0"), ("'0'", "at least 1")),
        (("--threads", "two"), ("'two'", "whole numbers")),
        (("--threads", f"1,{len(usable()) + 1}"), (f"{len(usable()) + 1} threads", f"{len(usable())} cores")),
        (("--cores", "99999"), ("'99999'", str(usable()[0]))),
        (("--optimizer", "lbfgs"), ("'lbfgs'", "'sgd', 'adam'")),
        (("--json", "/no/such/folder/rows.json"), ("'/no/such/folder/rows.json'", "make it first")),
        (("--repeats", "0"), ("0 is not in the range",)),
    ],
)
def test_a_mistake_is_one_sentence_that_names_what_is_known(options, words, capsys):
    assert run("step", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("benchmarks: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.skipif(len(usable()) < 2, reason="two threads need two cores")
def test_too_few_cores_for_the_threads_are_refused_with_both_numbers(capsys):
    assert run("step", "--threads", "1,2", "--cores", usable()[0]) == 2
    assert "--cores names 1 cores, and --threads asks for 2" in capsys.readouterr().err


def test_counts_by_hand():
    a = SHAPES["A"]  # three products of 20 x 20 and one of 20 x 10
    assert a.weights == 3 * 400 + 200
    assert a.flops == 2 * 64 * (3 * 1400 - 400) == 486_400
    hidden, table, output, weights = 6 * 64 * 60 * 4, 2 * 64 * 20 * 4, 4 * 64 * 10 * 4, 2 * 1400 * 4
    assert a.least_bytes == hidden + table + output + weights == 123_840


def test_quantiles_and_ratios_by_hand():
    ours, peer = Contender("A", "wholebatch", "batch", 1), Contender("A", "jax", "batch", 1)
    timings = Timings({ours: [1.0, 2.0, 3.0, 4.0, 5.0, math.nan], peer: [8.0, 16.0, 30.0, 32.0, 40.0, 1.0]})
    assert timings.quantiles(ours) == pytest.approx((1.8, 3.0, 4.2))
    # The rounds' ratios are 8, 8, 10, 8, 8; the peer's median is that of all its rounds, 23.
    assert timings.ratio(peer, ours) == pytest.approx((23 / 3, 8.0, 8.4))


def test_ours_at_its_best_is_held_against_the_best_peer_at_its_best():
    def contender(system: str, threads: int, norm: str = "batch") -> Contender:
        return Contender("A", system, norm, threads)

    seconds = {
        contender("wholebatch", 1): [1.0],
        contender("wholebatch", 2): [2.0],
        contender("wholebatch", 1, "none"): [0.8],
        contender("torch", 1): [20.0],
        contender("torch", 2): [9.0],
        contender("jax-scan", 1): [7.0],
        contender("jax-scan", 2): [10.0],
    }
    found = {ratio.what: ratio for ratio in ratios.of_shape(SHAPES["A"], Timings(seconds), chosen=2)}
    best = found["norm batch: best peer (jax-scan T=1) / wholebatch (T=1)"]
    assert (best.value, str(best.bar)) == (7.0, "at least 8")
    by_step = found["norm batch: best peer called for each step (torch T=2) / wholebatch (T=1)"]
    assert (by_step.value, str(by_step.bar)) == (9.0, "at least 8")
    assert best.bar is not None
    assert not best.bar.holds(best.value)
    assert best.bar.holds(by_step.value)
    assert found["norm batch: best peer on one thread (jax-scan T=1) / wholebatch (T=1)"].value == 7.0
    assert found["wholebatch, norm batch: its own choice of threads (2) / the best (1)"].value == 2.0
    norm = found["wholebatch, batch norm / none, best threads (1 / 1)"]
    assert norm.value == pytest.approx(1.25)
    assert norm.bar is not None
    assert not norm.bar.holds(norm.value)


def test_cores_that_are_not_free_are_told():
    with Talk() as talk:
        Limits(rounds={1: [100.0, 98.0, 50.0], 2: [195.0, 200.0, 190.0]}).tell_crowding("here", talk)
        assert talk.notes == []
        Limits(rounds={1: [100.0] * 3, 2: [101.0] * 3}).tell_crowding("here", talk)
        Limits(rounds={2: [55.0, 100.0, 50.0]}).tell_crowding("there", talk)
    assert talk.notes[0].startswith("here: 2 threads reached 1.01 times the multiply-adds of one")
    assert talk.notes[1].startswith(
        "there: 2 threads reached 55% of the best round's multiply-adds in the median round"
    )
    assert len(talk.notes) == 2


def test_the_instruction_set_in_use_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHOLEBATCH_INSTRUCTION_SET", "portable")
    lines = machine.describe([0], {"torch": "1"})
    expected = "portable (forced)" if native_available() else "none (forced)"
    assert lines[1] == f"instruction set of wholebatch: {expected}"


def test_shapes_read_as_written():
    assert str(Shape("X", 2, (3, 4))) == "2 x [3, 4]"
