"""``wholebatch timeline``: its files, its tables, and what it says to mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from said import Said, run_command
from wholebatch import kernels
from wholebatch.cost.recording import load

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part is missing here")

SMALL = ("--hidden", "24,16", "--batch-size", "150", "--threads", "2", "--steps", "6")


Command = Callable[..., Said]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs ``wholebatch timeline`` with these arguments in this process, in the folder ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wholebatch.cost.timeline.problem.OVERHEAD_SECONDS", 0.05)

    def run(*arguments: str) -> Said:
        return run_command(capsys, "timeline", *arguments)

    return run


def test_random_rows_without_a_word_more(command: Command, tmp_path: Path) -> None:
    said = command(*SMALL, "--slow-thread", "1", "--by", "2.5x")
    assert said.code == 0, said.err
    folder = next((tmp_path / "costs").iterdir())
    assert folder.name.startswith("timeline-random-")
    assert said.out.splitlines()[-3:] == [
        f"{what} costs/{folder.name}/{file}"
        for what, file in (("recording", "recording.json"), ("report", "report.html"), ("trace", "trace.json"))
    ]
    timeline = load(folder / "recording.json").timeline
    assert timeline is not None
    assert timeline.straggler is not None
    assert (timeline.straggler.thread, timeline.straggler.factor) == (1, 2.5)
    assert timeline.settings.sizes == [64, 24, 16, 10]
    assert (timeline.settings.batch_size, timeline.steps, timeline.shown) == (150, 6, "median")
    for words in (
        "came last",
        "hidden layer 2",
        "was waiting at its 6 meetings",
        "2.5 times as long",
        "Recording made",
    ):
        assert words in said.out
    assert "recording 6 steps" in said.err
    trace = json.loads((folder / "trace.json").read_text())
    assert {"thread 0", "thread 1"} <= {event["args"].get("name") for event in trace["traceEvents"]}


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_a_bundled_set_needs_no_target(command: Command, tmp_path: Path, name: str) -> None:
    said = command(name, *SMALL, "--quiet", "--out", "here", "--show", "slowest", "--dtype", "float64")
    assert said.code == 0, said.err
    assert said.err == ""
    assert len(said.out.splitlines()) == 3
    timeline = load(tmp_path / "here" / "recording.json").timeline
    assert timeline is not None
    assert (timeline.settings.source, timeline.settings.dtype, timeline.shown) == (name, "float64", "slowest")
    assert timeline.settings.loss == {"digits": "cross_entropy", "diabetes": "mse"}[name]
    assert timeline.step == timeline.slowest


def test_a_table_whose_names_are_scripts(command: Command, tmp_path: Path) -> None:
    column, name = "<script>alert(1)</script>", "<img src=x onerror=alert(1)>.csv"
    pl.DataFrame({"a": range(40), column: [i % 3 for i in range(40)]}).write_csv(tmp_path / name)
    said = command(name, "--target", column, *SMALL, "--out", "here")
    assert said.code == 0, said.err
    page = (tmp_path / "here" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    timeline = load(tmp_path / "here" / "recording.json").timeline
    assert timeline is not None
    assert timeline.settings.batch_size == 40  # there are no more rows


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("--slow-thread", "2"), ("thread 2", "threads 0 to 1"), 1),
        (("--slow-thread", "-1"), ("--slow-thread", "-1"), 2),
        (("--slow-thread", "1", "--by", "0.5x"), ("'0.5x'", "at least 1"), 2),
        (("--slow-thread", "1", "--by", "nan"), ("'nan'",), 2),
        (("--slow-thread", "1", "--by", "1000"), ("1000", "from 1 to 100"), 1),
        (("--by", "3x"), ("--slow-thread",), 2),
        (("--steps", "0"), ("--steps",), 2),
        (("--threads", "100000"), ("--threads",), 2),
        (("--target", "y"), ("random rows", "'y'"), 2),
        (("missing.csv", "--target", "y"), ("missing.csv",), 1),
        (("missing.csv",), ("--target",), 2),
        (("--batch-size", "1"), ("batch_size is 1", "at least 2"), 1),
        (("--out", "a-file"), ("a-file",), 1),
        (("--hidden", "1000000,1000000"), ("memory",), 1),
    ],
)
def test_a_mistake_is_one_sentence(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...], code: int
) -> None:
    (tmp_path / "a-file").touch()
    said = command(*SMALL, *arguments)
    assert said.code == code, said.err
    assert said.err.startswith("wholebatch: ")
    assert said.err.count("\n") == 1, said.err
    for word in words:
        assert word in said.err
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_help_asks_for_no_torch() -> None:
    program = (
        "import sys\nfrom wholebatch.commands import main\n"
        "try:\n    main(['timeline', '--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wholebatch", "timeline", "--steps", "10000", "--threads", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=_take_interrupts, env=dict(os.environ)
    )
    assert process.stderr is not None
    assert "measuring" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("wholebatch: interrupted: nothing was written")
    assert list(tmp_path.iterdir()) == []


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell has it ignored
