"""``wholebatch sync`` as a person uses it: real ranks, what it prints and leaves, mistakes, ranks that fail, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from ended import group_of
from tables_for_runs import write_small
from wholebatch import kernels, runs
from wholebatch.commands import main
from wholebatch.commands.sync import CHOICES
from wholebatch.cost.ranks import RankError, run_ranks, tell
from wholebatch.cost.recording import load
from wholebatch.cost.synchronisation.measuring import synchronise
from wholebatch.cost.synchronisation.record import Choice, Synchronisation
from wholebatch.cost.synchronisation.settings import Wanted
from wholebatch.cost.synchronisation.summary import is_unchanged
from wholebatch.feedforward.spread import Sync

needs_engine = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part is missing here")
TINY = ("--hidden", "6,5", "--batch-size", "16", "--epochs", "2", "--quick", "--out", "out")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command that ends with ``code``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["sync", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    return said.out, said.err


def test_help_does_not_import_torch():
    code = "import sys; from wholebatch.commands import main\ntry: main(['sync', '--help'])\n"
    code += "finally: print('torch' in sys.modules, 'polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--straggler" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"


def test_the_choices_are_those_of_a_spread():
    assert CHOICES == get_args(Choice) == get_args(Sync)


@needs_engine
def test_a_table_is_measured_recorded_and_drawn(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "b", "color", "value")
    out, err = run(capsys, "table.csv", "--target", "value", *TINY, "--straggler", "3x")
    found = load(Path("out/recording.json")).synchronisation
    assert found is not None
    choices = ("all", "none", "late")
    delays = ("none", "last", "changing")
    assert [(s.delay, s.choice) for s in found.steps] == [(delay, c) for delay in delays for c in choices]
    assert [(t.seed, t.delay, t.choice) for t in found.trainings] == [
        (seed, delay, choice) for seed, delay in (*((0, delay) for delay in delays), (1, "none")) for choice in choices
    ]
    assert (found.training_rows, found.validation_rows, found.steps_per_epoch, found.epochs) == (64, 16, 4, 2)
    assert (found.ranks, found.straggler, found.group_size) == (2, 3.0, None)
    for steps in found.steps:
        assert len(steps.timing.seconds) == 7
        assert len(steps.compute) == len(steps.wait) == len(steps.exchange) == 2
        assert min(steps.exchange) > 0  # the ranks meet at the end of each step, whatever is chosen
        assert max(steps.wait) > 0
        assert max(steps.wait) + max(steps.exchange) < max(steps.timing.seconds)
    for training in found.trainings:
        assert training.seconds == sorted(training.seconds)
        assert len(training.seconds) == len(training.scores) == 3
    firsts = {(t.seed, t.scores[0]) for t in found.trainings}
    assert len(firsts) == 2  # every choice begins with the same weights
    assert [is_unchanged(found, choice) for choice in choices] == [True] * 3
    scores = {t.choice: t.scores for t in found.trained("all") + found.trained("none")}
    assert scores["all"] != scores["none"]
    assert out.splitlines()[-2:] == ["recording out/recording.json", "report out/report.html"]
    assert err.splitlines() == [
        "reading the table",
        "starting ranks",
        "timing steps",
        "training, seed 1 of 2",
        "training, seed 2 of 2",
    ]
    page = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    with pytest.raises(SystemExit):
        main(["report", "out"])
    assert Path("out/report.html").read_text() == page


def measure(batch_size: int = 16, learning_rate: float = 3e-3, **wanted: Any) -> Synchronisation:
    """A tiny measurement of one seed."""
    write_small(Path("table.csv"), "a", "b", "value")
    settings = runs.Settings(
        table="table.csv",
        target=("value",),
        hidden=(6,),
        batch_size=batch_size,
        epochs=2,
        optimizer="sgd",
        learning_rate=learning_rate,
        dropout=0.0,
        schedule="constant",
        patience=None,
    )
    return synchronise(Wanted(settings, seeds=1, rounds=2, burst_seconds=1e-3, **wanted))


@needs_engine
def test_a_training_that_diverges_ends_and_is_told():
    found = measure(learning_rate=1e30, straggler=1.0, choices=("all", "late"))
    assert [(s.choice, s.delay) for s in found.steps] == [("all", "none"), ("late", "none")]
    assert [t.diverged for t in found.trainings] == [1, 1]
    assert [len(t.scores) for t in found.trainings] == [1, 1]


@needs_engine
def test_groups_of_four_ranks_and_no_slow_one():
    found = measure(processes=4, choices=("all", "group"), straggler=1.0)
    assert (found.group_size, found.ranks, [s.choice for s in found.steps]) == (2, 4, ["all", "group"])
    whole, group = (found.trained(choice)[0].scores for choice in ("all", "group"))
    assert whole[0] == group[0]
    assert whole[1:] != group[1:]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--processes", "1"), 2, "'--processes': 1 is not in the range x>=2"),
        (("--choices", "all,some"), 2, "'some' is none of all, group, none, late"),
        (("--straggler", "0.5x"), 2, "'--straggler'"),
        (("--straggler", "101x"), 1, "straggler is 101; a rank can be 1 (none) to 100 times as slow"),
        (("--batch-size", "2"), 1, "batch_size is 2, which leaves fewer than 2 rows to each of 2 ranks"),
        (("--choices", "group"), 1, "2 ranks cannot be cut into groups of 1"),
        (("--hidden", "none"), 1, "the net has no hidden layer, so there is no batch norm to synchronise"),
        (("--validation-fraction", "0"), 1, "keep some"),
        (("--ignore", "nothing"), 1, "nothing"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    if not kernels.native_available() and code == 1:
        pytest.skip("the compiled part is missing here, which is told first")
    write_small(Path("table.csv"), "a", "b", "kind")
    out, err = run(capsys, "table.csv", "--target", "kind", "--out", "out", *arguments, code=code)
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not Path("out").exists()


def test_without_a_target_or_a_table(capsys: pytest.CaptureFixture[str]):
    assert "no target column was named" in run(capsys, "missing.csv", code=2)[1]
    assert "missing.csv" in run(capsys, "missing.csv", "--target", "y", code=1)[1]


def test_a_rank_that_fails_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def break_down(*_: object, **__: object) -> None:
        raise RankError("rank 1 of 2 died; all were ended")

    monkeypatch.setattr("wholebatch.cost.synchronisation.measuring.run_ranks", break_down)
    monkeypatch.setattr("wholebatch.kernels.native_module", lambda: None)
    write_small(Path("table.csv"), "a", "b", "kind")
    _, err = run(capsys, "table.csv", "--target", "kind", "--quiet", "--out", "out", code=1)
    assert err == "wholebatch: rank 1 of 2 died; all were ended\n"
    assert not Path("out").exists()


def count(rank: int, until: int) -> int:
    for number in range(until):
        tell((rank, number))
    return rank


def test_ranks_tell_while_they_work():
    told: list[tuple[int, int]] = []
    assert run_ranks(count, 2, 3, told=told.append) == [0, 1]
    assert [number for rank, number in told if rank == 1] == [0, 1, 2]
    assert len(told) == 6


@needs_engine
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_leaves_no_rank_and_no_file(tmp_path: Path):
    """It reaches the whole group, as from a terminal. A command that is killed: see the tests of ``plan``."""
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "wholebatch", "sync", "digits", "--epochs", "1000", "--out", "out"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while len(group_of(process.pid)) < 5:  # the command, its fork server, the server's tracker, and two ranks
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(30)
    while (left := group_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (left, code) == ([], 130)
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last == "wholebatch: interrupted: nothing was written, and the ranks were ended"
    assert not (tmp_path / "out").exists()
