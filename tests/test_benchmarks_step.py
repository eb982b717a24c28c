"""The benchmarks measure what they say, name what they leave out, and leave no process behind. No speed is asserted."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import machine, ratios, rounds, scaling
from benchmarks.__main__ import main
from benchmarks.cores import usable
from benchmarks.crew import Crew, Worker, WorkerError
from benchmarks.exponent import fit_exponent
from benchmarks.limits import Limits
from benchmarks.problem import Problem
from benchmarks.rounds import Contender, Timings
from benchmarks.shapes import SHAPES, Shape
from benchmarks.systems import SYSTEMS
from benchmarks.talk import Talk
from wholebatch.kernels import native_available

ROOT = Path(__file__).parent.parent
KEYS = {"shape", "system", "norm", "threads", "median_us", "p20_us", "p80_us"}
TINY = ["step", "--shapes", "A", "--threads", "1", "--norms", "none", "--repeats", "3"]
needs_engine = pytest.mark.skipif(not native_available(), reason="the compiled part is missing")


def run(*arguments: object) -> int:
    """The exit code of ``python -m benchmarks arguments``."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def ended(pid: int, seconds: float = 20.0) -> bool:
    """Whether the process is gone, or a zombie that waits for its parent, within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


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
    assert err.splitlines() == [f"note: {missing}"]
    for words in ("A: 64 x [20, 20, 20, 20, 10]", "instruction set", "memory bandwidth", "at most 1.15"):
        assert words in out
        assert words in markdown.read_text()
    assert missing in markdown.read_text()
    assert sorted(p.name for p in tmp_path.glob("*.*") if p.name != "jax.py") == ["rows.json", "step.md"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os, sys; print('out of luck', file=sys.stderr); os._exit(3)", "with exit code 3: out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "by signal SIGKILL"),
    ],
)
def test_a_peer_whose_import_ends_the_process_is_named(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "jax.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Talk() as talk, Crew(usable()[:1]) as crew:
        assert rounds.load(crew, ["jax"], [1], talk) == {}
        assert crew.workers == {}
    assert talk.notes == [f"jax is left out: its process ended {reason}"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shapes", "A,G"), ("unknown shape 'G'", "A, B, C, D, E, F")),
        (("--peers", "keras"), ("unknown peer 'keras'", "torch, compile, jax, jax-scan, sklearn", "none alone")),
        (("--peers", "torch,none"), ("unknown peer 'none'", "none alone")),
        (("--norms", "group"), ("unknown norm 'group'", "batch, layer, none")),
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


@needs_engine
def test_a_worker_that_dies_between_rounds_is_told_and_the_others_go_on(capsys):
    problem = Problem(16, (4, 8, 3), "none", "sgd", 1)
    dies, lives = Contender("X", "wholebatch", "none", 1), Contender("X", "sklearn", "none", 1)
    turns = []
    with Talk() as talk, Crew(usable()[:1]) as crew:
        assert set(rounds.load(crew, ["wholebatch", "sklearn"], [1], talk)) == {"wholebatch", "sklearn"}
        pids = [worker.process.pid for worker in crew.workers.values()]
        assert [os.sched_getaffinity(pid) for pid in pids] == [{usable()[0]}] * 2

        def kill_in_the_second_round() -> None:
            turns.append(None)
            if len(turns) == 2:
                crew.workers["wholebatch", 1].process.kill()

        timings = rounds.measure(crew, {dies: problem, lives: problem}, 3, talk, kill_in_the_second_round)
    assert list(timings.seconds) == [lives]
    assert all(seconds > 0 for seconds in timings.seconds[lives])
    said = " ".join(capsys.readouterr().err.split())
    assert "wholebatch (shape X, norm none, 1 thread) is left out: its process ended by signal SIGKILL" in said
    assert all(ended(pid) for pid in pids)


def test_a_worker_that_says_nothing_is_ended():
    worker = Worker("sklearn", usable()[:1], SYSTEMS["sklearn"], patience=0.01)
    with pytest.raises(WorkerError, match="gave no answer within"):
        worker.ask("load")
    assert not worker.alive


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_is_left_where_the_run_is_stopped(number: signal.Signals, code: int, tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks", *TINY, "--peers", "sklearn", "--repeats", "1000000"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen([*command, "--json", str(tmp_path / "rows")], cwd=ROOT, stdout=err, stderr=err)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    while not (workers := [int(pid) for pid in children.read_text().split()]):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert all(ended(pid) for pid in workers)
    if number == signal.SIGINT:
        assert (tmp_path / "err").read_text().splitlines()[-1] == "benchmarks: interrupted"
    assert not (tmp_path / "rows").exists()


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


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.7])
def test_the_exponent_of_an_exact_power(exponent: float):
    sizes = [2, 16, 64, 1024]
    fit = fit_exponent(sizes, [3e-6 * n**exponent for n in sizes])
    assert fit.exponent == pytest.approx(exponent, abs=1e-12)  # a few roundings of logarithms below 20
    assert fit.error == pytest.approx(0, abs=1e-7)  # the root of a difference of 1e-16
    with pytest.raises(ValueError, match="got 2 and 1"):
        fit_exponent([1, 2], [1.0])
    with pytest.raises(ValueError, match="must be above 0"):
        fit_exponent([1, 2], [0.0, 1.0])


def test_scaling_is_summed_up_by_axis():
    seconds = {
        Contender(str(n), "wholebatch", norm, 1): [factor * n * 1e-6] * 2
        for n in (64, 256, 1024)
        for norm, factor in (("batch", 2.2), ("none", 2.0))
    }
    found = scaling.summarise("batch", (64, 256, 1024), ["wholebatch"], Timings(seconds))
    assert [e["exponent"] for e in found["exponents"]] == pytest.approx([1.0, 1.0])
    assert [p["median_us"] for p in found["points"][:3]] == pytest.approx([140.8, 563.2, 2252.8])
    sheet = scaling.to_sheet(found)
    assert sheet.rows[0] == ("64", "140.8", "128.0", "1.100")
    assert "wholebatch, norm batch: exponent 1.00 ± 0.00" in sheet.caption


@needs_engine
def test_a_scaling_run_writes_its_points(tmp_path: Path):
    path = tmp_path / "scaling.json"
    options = ("--axes", "threads", "--threads", 1, "--systems", "wholebatch", "--repeats", 2, "--json", path)
    assert run("scaling", *options) == 0
    (found,) = json.loads(path.read_text())
    assert [(p["value"], p["norm"]) for p in found["points"]] == [(1, "batch"), (1, "none")]
    assert all(0 < p["p20_us"] <= p["median_us"] <= p["p80_us"] < math.inf for p in found["points"])
    assert found["exponents"] == []  # of a single point there is none


# Ten steps of a peer from torch eager's parameters; prints the largest difference to eager's parameters after them. In
# a process of its own, for jax starts threads and compile's stance is global.
SAME_WORK = """
import sys
import numpy as np, torch
from benchmarks.limits import Limits
from benchmarks.problem import Problem
from benchmarks.systems import compiled, eager

def difference(found, net):
    return max(float(abs(a - b.detach().numpy()).max()) for a, b in zip(found, net.parameters(), strict=True))

torch.compiler.set_stance("force_eager")  # the formulas are looked at, not the compiler
for norm in ("batch", "layer", "none"):
    for optimizer in ("sgd", "adam"):
        problem = Problem(16, (4, 8, 6, 3), norm, optimizer, 1)
        batches = eager.make_batches(problem)[:10]
        loop = eager._loop(problem, batches, "foreach")
        start = [p.detach().clone() for p in loop.net.parameters()]
        loop.run(10)
        moved = difference([p.numpy() for p in start], loop.net)
        if sys.argv[1] == "compile":
            peer = compiled.whole(problem, batches)
            peer.run(10)
            found = [p.detach().numpy() for p in peer.net.parameters()]
            buffers = [b.numpy() for n, b in peer.net.named_buffers() if "running" in n]
        else:
            import jax
            from benchmarks.systems import jitted
            layers, running, moments, count = jitted.initial(problem)
            values = iter(start)
            for layer in layers:  # torch's order, and its weights are (out, in)
                for name in ("w", "b", "gamma", "beta"):
                    if name in layer:
                        value = next(values).numpy()
                        layer[name] = value.T if name == "w" else value
            state = layers, running, moments, count
            step = jax.jit(jitted.take_step, static_argnums=0)
            for x, y in batches:
                state = step(problem, state, x.numpy(), y.numpy().astype("int32"))
            found = [np.asarray(layer[name]).T if name == "w" else np.asarray(layer[name])
                     for layer in state[0] for name in ("w", "b", "gamma", "beta") if name in layer]
            buffers = [np.asarray(part) for pair in state[1] for part in pair]
        theirs = [b.numpy() for n, b in loop.net.named_buffers() if "running" in n]
        far = max([float(abs(a - b).max()) for a, b in zip(buffers, theirs, strict=True)], default=0.0)
        print(norm, optimizer, moved, difference(found, loop.net), far)
"""


@pytest.mark.parametrize("peer", ["compile", "jax"])
def test_peers_do_the_same_work_as_torch_eager(peer: str):
    if peer == "jax" and importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SAME_WORK, peer], cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6
    for norm, optimizer, *numbers in lines:
        moved, difference, far = map(float, numbers)
        # Ten steps of about 1e-5 (Adam) and more (SGD); parameters are below 2, so a float32 rounding is 1.2e-7, and a
        # wrong formula would be off by about a step.
        assert moved > 5e-5, (norm, optimizer)
        assert difference < 0.1 * moved, (norm, optimizer)
        assert far < 1e-5, (norm, optimizer)  # statistics of size 1, some ten roundings


def test_shapes_read_as_written():
    assert str(Shape("X", 2, (3, 4))) == "2 x [3, 4]"
