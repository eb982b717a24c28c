"""``wholebatch plan`` as a person uses it: real ranks, what it prints and leaves, mistakes, Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from ended import group_of
from wholebatch.commands import main
from wholebatch.commands.quantities import Bandwidth, Duration, Factor, Jitter, Workers
from wholebatch.cost.plan.check import last_to_come
from wholebatch.cost.plan.clocked import Clocked
from wholebatch.cost.plan.measuring import describe, fit_link, fit_lognormal, measure_steps, meeting_bytes
from wholebatch.cost.plan.trial import Shape, Times
from wholebatch.cost.ranks import RankError, run_ranks
from wholebatch.cost.recording import Recording, load
from wholebatch.sharing import Meeting

GIVEN = ("--latency", "5us", "--bandwidth", "10Gbit/s", "--hidden", "16,8", "--batch-size", "32", "--seconds", "0.1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command that ends with ``code``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    return said.out, said.err


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A plan with everything measured and a check with two real ranks; and what was printed."""
    folder = tmp_path_factory.mktemp("plan") / "out"
    arguments = [*GIVEN[4:], "--workers", "1..512", "--check", "2", "--out", str(folder)]
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        main(["plan", *arguments])
    assert ended.value.code == 0, said.getvalue()
    return folder, said.getvalue()


def test_from_end_to_end(recorded: tuple[Path, str]):
    folder, said = recorded
    assert {file.name for file in folder.iterdir()} == {"recording.json", "report.html"}
    assert said.splitlines()[-2:] == [f"recording {folder / 'recording.json'}", f"report {folder / 'report.html'}"]
    record = load(folder / "recording.json").plan
    assert record is not None
    assert [one.workers for one in record.of("all")] == [2**k for k in range(10)]
    assert {one.method for one in record.forecasts} == {"simulated", "closed form"}
    assert record.network.meetings == record.network.gradients
    assert record.network.meetings.source == "measured"
    work = record.workload
    assert [layer.name for layer in work.layers] == ["hidden 1 (16)", "hidden 2 (8)", "output"]
    assert [layer.forward_bytes for layer in work.layers] == [8 * 33, 8 * 17, 0]
    # 64 features, 10 classes: weights, batch norm's weight and bias, the output's bias; float32.
    assert work.gradient_bytes == 4 * (64 * 16 + 16 * 8 + 8 * 10 + 2 * (16 + 8) + 10)
    assert all(layer.forward_us > 0 and layer.backward_us > 0 for layer in work.layers)


def test_the_check_is_what_was_measured(recorded: tuple[Path, str]):
    folder, said = recorded
    record = load(folder / "recording.json").plan
    assert record is not None
    assert record.check is not None
    assert [(line.workers, line.synchronisation) for line in record.check.lines] == [(2, "all"), (2, "none")]
    for line in record.check.lines:
        assert line.steps >= 40  # four rounds of ten steps
        assert line.p20_us <= line.median_us <= line.p80_us
        assert line.error_percent == pytest.approx(100 * (line.predicted_us / line.median_us - 1))
        assert line.told_error_percent == pytest.approx(100 * (line.told_us / line.median_us - 1))
        assert f"{round(line.error_percent):+d} %" in said
        assert line.measured_idle_us > 0
        assert line.compute_us > 0
    assert record.check.network.meetings.source == "measured"
    assert [(line.workers, line.synchronisation) for line in record.check.slept] == [(2, "all"), (2, "none")]
    for slept in record.check.slept:
        assert slept.steps == 12
        assert slept.error_percent == pytest.approx(100 * (slept.predicted_us / slept.median_us - 1))
        assert slept.p20_us <= slept.median_us <= slept.p80_us
        # A sleep takes at least what it was asked for, five of 10 ms a step. A step of the slower of two ranks varies
        # by 6 ms, and the median of twelve by 1.25 / sqrt(12) of that, 2.2 ms: five of those less.
        assert slept.median_us > 50_000 - 11_000


def test_page_and_console_say_the_same(recorded: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    from wholebatch.cost.plan.section import describe as section

    folder, said = recorded
    record = load(folder / "recording.json").plan
    assert record is not None
    found = section(record)
    flat = " ".join(said.split())
    for sentence in (*found.answer, *found.notes):
        assert " ".join(sentence.split()) in flat
    assert [shown.picture.name for shown in found.shown if shown.picture] == ["plan-steps", "plan-wait", "plan-check"]
    steps = found.shown[0].picture
    assert steps is not None
    stacked = [trace for trace in steps.figure.data if trace.stackgroup]
    total = np.sum([trace.y for trace in stacked], axis=0)
    scale = 1e3 if max(one.mean_us for one in record.forecasts) >= 1e3 else 1.0
    assert total * scale == pytest.approx([one.mean_us for one in record.of("all")], rel=1e-6)
    for shown in found.shown:
        if shown.table is not None:
            assert {len(row) for row in shown.table.rows} == {len(shown.table.columns)}


def test_a_plan_from_a_recording_needs_no_ranks(
    recorded: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """A recording with neither profile nor timeline is refused; so is one of a newer version, and no recording."""
    folder, _ = recorded
    _, err = run(capsys, "--from", str(folder), *GIVEN, "--no-check", code=1)
    assert "holds neither a profile nor a timeline" in err
    text = (folder / "recording.json").read_text()
    (tmp_path / "newer.json").write_text(text.replace('"version": 1', '"version": 99'))
    _, err = run(capsys, "--from", "newer.json", *GIVEN, "--no-check", code=1)
    assert "version 99" in err
    (tmp_path / "none.json").write_text("[1")
    _, err = run(capsys, "--from", "none.json", *GIVEN, "--no-check", code=1)
    assert "none.json" in err
    assert "JSON" in err
    _, err = run(capsys, "--from", "missing.json", *GIVEN, "--no-check", code=1)
    assert "missing.json" in err
    assert sorted(os.listdir()) == ["newer.json", "none.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", "4..2"), "goes down"),
        (("--workers", "many"), "not a range such as 2..4096"),
        (("--workers", "0..4"), "not within 1 to"),
        (("--workers", "2,,4"), "not a range"),
        (("--jitter", "-0.1"), "not a share from 0 to 1"),
        (("--jitter", "nan"), "not a share"),
        (("--latency", "5"), "not a duration with a unit"),
        (("--latency", "-5us"), "not a duration"),
        (("--bandwidth", "10"), "not a bandwidth"),
        (("--bandwidth", "0Gbit/s"), "lets nothing through"),
        (("--by", "0.5x"), "not a factor of at least 1"),
        (("--by", "2x"), "no worker is slow"),
        (("--check", "1,2"), "not within 2 to"),
        (("--hidden", "none"), "needs at least one layer"),
        (("--batch-size", "1"), "is not in the range"),
    ],
)
def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str):
    out, err = run(capsys, *arguments, code=2)
    assert said in err
    assert out == ""
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", "2,10", "--group-size", "4"), "groups of 4 do not divide 10 workers"),
        (("--slow-worker", "2"), "worker 2 is to be slow"),
        (("--strong", "--workers", "2..64"), "64 workers cannot divide a mini-batch of 32 rows"),
        (("--out", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_mistakes_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
):
    def measure(*_: object) -> None:
        pytest.fail("something was measured")

    monkeypatch.setattr("wholebatch.cost.plan.host.run_ranks", measure)
    _, err = run(capsys, *GIVEN, *arguments, code=1)
    assert said in err
    assert os.listdir() == []


def test_units():
    def duration(text: str) -> float:
        return Duration().convert(text, None, None)

    assert [duration(text) for text in ("5us", "5 µs", "0.3ms", "800ns", "1e-3s", ".5 MS")] == pytest.approx(
        [5, 5, 300, 0.8, 1000, 500]
    )
    speeds = {
        "10Gbit/s": 1250,
        "10 Gb/s": 1250,
        "10Gbps": 1250,
        "1.25GB/s": 1250,
        "8bit/s": 1e-6,
        "1GiB/s": 1073.741824,
    }
    for text, speed in speeds.items():
        assert Bandwidth().convert(text, None, None) == pytest.approx(speed), text
    assert [Factor().convert(text, None, None) for text in ("3x", "1", "2.5 ×")] == [3, 1, 2.5]
    assert [Jitter().convert(text, None, None) for text in ("5%", "0.05", "0", "100%")] == [0.05, 0.05, 0, 1]
    ranges = {"2..16": (2, 4, 8, 16), "2..12": (2, 4, 8, 12), "6,2,2": (2, 6), "3..6, 1": (1, 3, 6), "4..4": (4,)}
    for text, numbers in ranges.items():
        assert Workers().convert(text, None, None) == numbers
    with pytest.raises(click.BadParameter, match="too large"):
        duration("1e400s")


def test_fits():
    """A link from two sizes by hand; a lognormal from 4,000 of its quantiles, to what these leave out in the tails."""
    link = fit_link([1000, 3000], [[5e-6, 6e-6, 7e-6], [8e-6] * 3], usual=True)
    assert (link.latency_us, link.megabytes_per_second) == pytest.approx((5, 1000))
    link = fit_link([1000, 3000], [[5e-6, 6e-6, 25e-6], [8e-6] * 3], usual=False)
    assert (link.latency_us, link.megabytes_per_second) == pytest.approx((11, 1000))
    assert fit_link([1, 9], [[3e-6], [2e-6]], usual=True).latency_us == pytest.approx(3)
    from scipy.special import ndtri

    sigma = np.sqrt(np.log1p(0.2**2))
    seconds = 1e-3 * np.exp(sigma * ndtri((np.arange(4000) + 0.5) / 4000) - sigma**2 / 2)
    mean, spread = fit_lognormal(seconds)
    assert mean == pytest.approx(1000, rel=1e-4)
    assert spread == pytest.approx(0.2, rel=1e-3)


def test_the_slowest_of_each_stretch():
    """Two ranks, one layer with batch norm: update and layer, output both ways, layer backward. By hand."""
    first = [Times(0.0, 0.0, (1e-6, 2e-6, 3e-6, 4e-6, 5e-6)), Times(0.0, 0.0, (1e-6,) * 5)]
    second = [Times(0.0, 0.0, (3e-6, 1e-6, 4e-6, 1e-6, 6e-6)), Times(0.0, 0.0, (2e-6,) * 5)]
    assert last_to_come([first, second], hidden=1) == pytest.approx([4 + 7 + 6, 10])
    apart = [[Times(0.0, 0.0, (1e-6, 2e-6, 3e-6))], [Times(0.0, 0.0, (3e-6, 1e-6, 1e-6))]]
    assert last_to_come(apart, hidden=1) == pytest.approx([6])


def test_help_does_not_import_torch():
    code = "import sys; from wholebatch.commands import main\ntry: main(['plan', '--help'])\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--workers" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


# What follows runs in ranks.

NAP = 0.02


def nap(rank: int) -> list[float]:
    """Rank 1 comes late to each of three meetings."""
    import torch
    import torch.distributed as dist

    group = dist.GroupMember.WORLD
    assert group is not None
    sharing = Clocked(group)
    sharing.sum(torch.ones(4), Meeting("first", "forward"))
    dist.barrier()
    sharing.marks.clear()
    for _ in range(3):
        if rank == 1:
            time.sleep(NAP)
        total = sharing.sum(torch.ones(4), Meeting("a", "forward"))
        assert total.tolist() == [2.0] * 4
    return sharing.marks


def test_who_waits_for_whom_is_on_the_clock():
    """Nobody leaves a meeting before the last has come; that one slept before each, and a sleep cannot be shorter."""
    early, late = (np.reshape(marks, (3, 2)) for marks in run_ranks(nap, 2))  # came, left; one clock for both
    assert (late[:, 0] <= early[:, 1]).all()
    assert (np.diff(early.ravel()) >= 0).all()
    assert (late[1:, 0] - late[:-1, 1] >= NAP).all()


def test_pieces_of_a_step_add_up():
    """Compute and idle of each measured step make the step; steps alone meet nobody."""
    shape = Shape((8, 4), 16)
    measured = run_ranks(measure_steps, 2, shape, 0.05)
    assert [one.way for one in measured] == [measured[0].way] * 2
    for one in measured:
        assert len(one.together) == len(one.apart) == 40
        for times in (*one.together, *one.alone):
            assert len(times.pieces) == 1 + 2 * 3
            assert min(times.pieces) > 0
            assert sum(times.pieces) + times.idle == pytest.approx(times.step, abs=1e-9)
        assert all(len(times.pieces) == 3 for times in one.apart)
    assert [len(one.alone) for one in measured] == [20, 20]
    work = describe(shape, [times for one in measured for times in one.alone], 2)
    assert (work.rows, work.whole_rows) == (16, 32)
    assert work.layers[0].backward_bytes == meeting_bytes(8)


def fail(rank: int, how: str) -> None:
    if rank == 1 and how == "raise":
        raise ValueError("a reason")
    if rank == 1 and how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.parametrize(
    ("how", "said"), [("raise", r"rank 1 of 2 failed \(ValueError: a reason\)"), ("die", "rank 1 of 2 died")]
)
def test_a_rank_that_fails_ends_all(how: str, said: str):
    start = time.monotonic()
    with pytest.raises(RankError, match=said):
        run_ranks(fail, 2, how)
    assert time.monotonic() - start < 50  # rank 0 would have slept for 60


def test_ranks_that_give_no_result_are_ended():
    with pytest.raises(RankError, match="rank 0, 1 of 2 gave no result in time"):
        run_ranks(fail, 2, "sleep", patience=0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["Ctrl-C", "killed"])
def test_no_rank_outlives_the_command(tmp_path: Path, how: str):
    """Ctrl-C reaches the whole group, as from a terminal; SIGKILL the command alone."""
    arguments = [*GIVEN[:-1], "30", "--check", "2", "--out", "out"]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "wholebatch", "plan", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    # The command, its fork server, the server's tracker, and a rank that measures for 30 seconds.
    while len(group_of(process.pid)) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    code = process.wait(30)
    said = (tmp_path / "stderr").read_text()
    while (left := group_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert code == (130 if how == "Ctrl-C" else -signal.SIGKILL)
    if how == "Ctrl-C":
        assert said.splitlines()[-1] == "wholebatch: interrupted: nothing was written, and the ranks were ended"
        assert not re.search("Traceback", said)
    assert not (tmp_path / "out").exists()


def test_a_failed_check_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def break_down(*_: object) -> None:
        raise RankError("rank 1 of 2 died; all were ended")

    monkeypatch.setattr("wholebatch.cost.plan.host.run_ranks", break_down)
    _, err = run(capsys, *GIVEN, "--quiet", code=1)
    assert err == (
        "wholebatch: rank 1 of 2 died; all were ended; plan without local ranks: --no-check, --latency, --bandwidth\n"
    )


def test_only_the_result(capsys: pytest.CaptureFixture[str]):
    """--quiet, one worker's step measured by one rank, nothing else: two lines."""
    out, err = run(capsys, *GIVEN, "--no-check", "--workers", "2", "--quiet", "--out", "out", "--parameters", "1000")
    assert err == ""
    assert out.splitlines() == ["recording out/recording.json", "report out/report.html"]
    record: Recording = load(Path("out/recording.json"))
    assert record.plan is not None
    assert record.plan.check is None
    assert record.plan.workload.gradient_bytes == 4000
    assert record.plan.network.meetings.source == "given"
    assert (record.plan.network.meetings.latency_us, record.plan.network.meetings.megabytes_per_second) == (5, 1250)
