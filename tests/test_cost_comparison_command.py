"""``wholebatch compare`` as a person uses it: on tiny tables, on hard ones, with mistakes, and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from processes import start
from tables_for_runs import write_small
from wholebatch.commands import main
from wholebatch.cost.recording import Recording, load

TINY = ("--hidden", "6", "--batch-size", "16", "--epochs", "2", "--threads", "1", "--quick", "--out", "out")
INTERRUPT_SECONDS = 30.0


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``wholebatch compare`` with these arguments."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["compare", *arguments])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Recording, str, str]:
    """(recording, stdout, stderr) of one that must succeed, into the folder ``out``."""
    code, out, err = run(capsys, *arguments, *TINY)
    assert code == 0, err
    return load(Path("out/recording.json")), out, err


def test_help_does_not_import_torch():
    code = "import sys; from wholebatch.commands import main\ntry: main(['compare', '--help'])\n"
    code += "finally: print('torch' in sys.modules, 'polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--target-score" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"


def test_a_table_is_compared_recorded_and_drawn(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "b", "color", "kind")
    recording, out, err = compared(capsys, "table.csv", "--target", "kind")
    found = recording.comparison
    assert found is not None
    norms = ("batch", "batch-after", "layer", "rms", "none")
    assert [(c.norm, c.engine) for c in found.contenders] == [(n, e) for n in norms for e in ("wholebatch", "torch")]
    assert [(r.norm, r.engine, r.seed) for r in found.runs] == [
        (n, e, s) for n in norms for e in ("wholebatch", "torch") for s in (0, 1)
    ]
    assert (found.training_rows, found.validation_rows, found.steps_per_epoch, found.epochs) == (64, 16, 4, 2)
    assert all(r.steps == list(range(9)) and r.seconds == sorted(r.seconds) for r in found.runs)
    assert all(len(c.timing.seconds) == 7 and c.threads == 1 for c in found.contenders)
    before = {(r.norm, r.engine, r.seed): r.scores[0] for r in found.runs}
    assert all(before[n, "wholebatch", s] == before[n, "torch", s] for n in norms for s in (0, 1))
    assert '"3 to 5 times slower"' in out
    assert out.splitlines()[-2:] == ["recording out/recording.json", "report out/report.html"]
    assert err.splitlines() == [
        "reading the table",
        "choosing threads and variants",
        "timing steps",
        "training, scored",
        "training, timed",
    ]
    assert sorted(os.listdir("out")) == ["recording.json", "report.html"]
    page = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    with pytest.raises(SystemExit):
        main(["report", "out"])
    assert Path("out/report.html").read_text() == page


def test_some_norms_on_one_engine_with_learning_rates_of_their_own(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "b", "kind")
    more = ("--norms", "layer,none", "--engines", "torch", "--learning-rates", "0.001,0.05", "--quiet")
    recording, out, err = compared(capsys, "table.csv", "--target", "kind", *more)
    found = recording.comparison
    assert found is not None
    assert [(t.norm, t.learning_rate) for t in found.trials] == [
        (norm, rate) for norm in ("layer", "none") for rate in (0.001, 0.05)
    ]
    assert found.trials_engine == "torch"
    chosen = {t.norm: t.learning_rate for t in found.trials if t.chosen}
    assert {c.norm: c.learning_rate for c in found.contenders} == chosen
    for norm in chosen:
        best = {t.learning_rate: t.best for t in found.trials if t.norm == norm}
        assert max(v for v in best.values() if v is not None) == best[chosen[norm]]
    assert {c.norm for c in found.claims} == {"layer"}
    assert err == ""
    assert [line.split()[0] for line in out.splitlines()] == ["recording", "report"]


def test_values_are_scored_by_r2_and_an_unreachable_target_is_no_number(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "b", "color", "value")
    recording, out, _ = compared(capsys, "table.csv", "--target", "value", "--target-score", "1", "--seeds", "1")
    found = recording.comparison
    assert found is not None
    assert (found.task, found.score_name, found.seeds) == ("regression", "R2", [0])
    assert found.target.given
    assert all(run.steps_to_target is None and run.seconds_to_target is None for run in found.runs)
    assert len(re.findall("not reached", out)) >= 10
    assert "no norm reached it within 8 steps" in out


def test_several_labels(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "color", "up", "red")
    recording, _, _ = compared(capsys, "table.csv", "--target", "up", "--target", "red", "--norms", "batch")
    assert recording.comparison is not None
    assert recording.comparison.score_name == "exact match"
    assert recording.comparison.claims == []


def test_constant_columns_and_no_hidden_layer_are_told(capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    a = rng.standard_normal(60)
    pl.DataFrame({"a": a, "same": ["<u>x</u>"] * 60, "y": np.where(a > 0, "p", "q")}).write_csv("table.csv")
    code, out, err = run(capsys, "table.csv", "--target", "y", *TINY, "--norms", "batch,none", "--hidden", "none")
    assert code == 0, err
    assert "column 'same' is left out" in out
    assert "no hidden layer" in out
    assert "Only 12 validation rows" in out


def test_a_bundled_set_needs_no_target_and_a_long_one_is_drawn_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from wholebatch.commands import subject

    monkeypatch.setitem(subject.QUICK_BESIDE, "most_rows", 100)
    recording, out, _ = compared(capsys, "iris", "--norms", "batch,none", "--engines", "wholebatch")
    assert recording.comparison is not None
    assert recording.comparison.target_columns == ["species"]
    assert recording.comparison.training_rows + recording.comparison.validation_rows == 100
    assert "100 of the table's 150 rows were drawn" in out


MISTAKES: list[tuple[str, dict[str, Any] | None, list[str], int, tuple[str, ...]]] = [
    ("no such file", None, ["nowhere.csv", "--target", "y"], 1, ("no file", "nowhere.csv")),
    ("no target", {"a": [1, 2]}, ["table.csv"], 2, ("--target COLUMN",)),
    ("a target that is not there", {"a": [1.5, 2.5]}, ["table.csv", "--target", "y"], 1, ("'y'",)),
    ("two rows", {"a": [1, 2], "y": ["p", "q"]}, ["table.csv", "--target", "y"], 1, ("2 rows", "too few")),
    (
        "three rows, one to score",
        {"a": [1, 2, 3], "y": [1.5, 2.5, 9.5]},
        ["table.csv", "--target", "y"],
        1,
        ("1 row", "R^2"),
    ),
    ("an unknown norm", {"a": [1]}, ["table.csv", "--norms", "batch,group"], 2, ("'group'", "batch-after")),
    ("a norm twice", {"a": [1]}, ["table.csv", "--norms", "batch,batch"], 2, ("'batch'", "more than once")),
    ("an unknown engine", {"a": [1]}, ["table.csv", "--engines", "jax"], 2, ("'jax'", "torch")),
    ("no learning rate", {"a": [1]}, ["table.csv", "--learning-rates", "0.1,x"], 2, ("list of numbers",)),
    ("a learning rate of 0", {"a": [1]}, ["table.csv", "--learning-rates", "0.1,0"], 2, ("finite and above 0",)),
    ("an infinite one", {"a": [1]}, ["table.csv", "--learning-rates", "inf"], 2, ("finite and above 0",)),
    ("a score above 1", {"a": [1]}, ["table.csv", "--target-score", "1.5"], 2, ("--target-score", "1.5")),
    (
        "mini-batches of one",
        {"a": [1.0, 2, 3, 4, 5], "y": [1.5, 2.5, 3.5, 4.5, 9.5]},
        ["table.csv", "--target", "y", "--batch-size", "1", "--validation-fraction", "0.4"],
        1,
        ("batch_size is 1",),
    ),
    (
        "nothing to score with",
        {"a": [1.0, 2, 3], "y": [1.5, 2.5, 3.5]},
        ["table.csv", "--target", "y", "--validation-fraction", "0"],
        1,
        ("validation_fraction is 0",),
    ),
    (
        "a net beyond all memory",
        {"a": [float(i) for i in range(20)], "y": [float(i * i) + 0.5 for i in range(20)]},
        ["table.csv", "--target", "y", "--hidden", "3000000,3000000"],
        1,
        ("3000000", "PiB", "free"),
    ),
]


@pytest.mark.parametrize(
    ("table", "arguments", "code", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    table: dict[str, Any] | None,
    arguments: list[str],
    code: int,
    words: tuple[str, ...],
):
    if table is not None:
        pl.DataFrame(table).write_csv("table.csv")
    got, out, err = run(capsys, *arguments, "--quick", "--quiet")
    assert got == code, err
    assert out == ""
    assert err.startswith("wholebatch: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err
    assert [name for name in os.listdir() if name != "table.csv"] == []


def test_a_recording_is_never_written_over(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "kind")
    Path("out").mkdir()
    Path("out/recording.json").write_text("mine")
    code, _, err = run(capsys, "table.csv", "--target", "kind", *TINY)
    assert code == 1
    assert "already holds a recording.json" in err
    assert Path("out/recording.json").read_text() == "mine"


def test_ctrl_c_ends_it_with_a_sentence_and_leaves_nothing(tmp_path: Path):
    more = ("--epochs", "1000000", "--threads", "1", "--norms", "batch,none", "--hidden", "6", "--out", "out")
    more += ("--engines", "wholebatch")
    command = start(tmp_path, "compare", "iris", *more)
    until = time.monotonic() + INTERRUPT_SECONDS
    while "training" not in ((tmp_path / "stderr").read_text() if (tmp_path / "stderr").exists() else ""):
        assert time.monotonic() < until, "never began to train"
        time.sleep(0.05)
    pid = command.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    code, out, err = command.wait()
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("wholebatch: interrupted: nothing was written")
    assert not (tmp_path / "out").exists()


def test_what_comes_from_outside_stays_text(capsys: pytest.CaptureFixture[str]):
    script = "<script>alert(1)</script>"
    rng = np.random.default_rng(0)
    a = rng.standard_normal(60)
    pl.DataFrame({"a": a, "[bold]c": [1.0] * 60, script: np.where(a > 0, "p", "q")}).write_csv("table.csv")
    code, out, err = run(capsys, "table.csv", "--target", script, *TINY, "--norms", "batch,none")
    assert code == 0, err
    assert "[bold]c" in out
    assert json.loads(Path("out/recording.json").read_text())["comparison"]["target_columns"] == [script]
    assert script not in Path("out/report.html").read_text()
