"""The benchmark of ranks that train a net together: its peer does the same work, and its bars are read right.

No speed is asserted.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import processes, processes_tables
from benchmarks.cores import usable
from benchmarks.problem import Problem, SpreadProblem
from benchmarks.processes_tables import AT_ONCE, DDP, ONE, RANKS, Spread
from benchmarks.rounds import Timings
from benchmarks.shapes import SHAPES
from benchmarks.systems import distributed, eager
from benchmarks.systems.joint_norm import Compiled, Kernels
from measuring import run
from ranks import run_ranks
from wholebatch.kernels import native_available

two_cores = pytest.mark.skipif(len(usable()) < 2, reason="two ranks need two cores")
needs_engine = pytest.mark.skipif(not native_available(), reason="the compiled part is missing")
KEYS = {"shape", "system", "sync", "ranks", "threads", "median_us", "p20_us", "p80_us", "wait", "exchange", "idle"}
STEPS = 10
TINY = SpreadProblem(16, (4, 8, 6, 3), "batch", "sgd", 2)
State = dict[str, torch.Tensor]


def train_peers(rank: int) -> list[tuple[State, float, dict[str, float]]]:
    """Of each variant of the peer: the net after its steps in float64, the seconds that it told, and its shares."""
    start = eager.make_net(TINY)
    torch.set_default_dtype(torch.float64)
    torch.compiler.set_stance("force_eager")  # the formulas are looked at, not the compiler
    batches = [(x.double(), y) for x, y in distributed.make_batches(TINY)[:STEPS]]
    found = []
    for pieces, way in ((Kernels(), "one bucket"), (Compiled(), "buckets of 1 MB, static graph")):
        loop = distributed.Loop(TINY, batches, pieces, dist.new_group(), way)
        with torch.no_grad():
            for value, given in zip(loop.net.parameters(), start.parameters(), strict=True):
                value.copy_(given)
        seconds = loop.run(STEPS)
        state = {name: value.clone() for name, value in loop.net.state_dict().items()}
        found.append((state, seconds, loop.measure()))
    return found


def test_the_peer_is_exact_batch_norm_over_all_ranks():
    whole = Problem(TINY.batch, TINY.sizes, TINY.norm, TINY.optimizer, 1)
    net = eager.make_net(whole).double()
    start = [value.clone() for value in net.parameters()]
    optimizer = eager.make_optimizer(whole, net)
    for x, y in eager.make_batches(whole)[:STEPS]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x.double()), y).backward()
        optimizer.step()
    expected = [*net.parameters(), *(value for name, value in net.named_buffers() if "running" in name)]
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(net.parameters(), start, strict=True))
    assert moved > 1e-3
    first, second = (outcome.value for outcome in run_ranks(train_peers, 2))
    for (state, seconds, told), (other, other_seconds, other_told) in zip(first, second, strict=True):
        assert (seconds, told) == (other_seconds, other_told)  # every rank is told the same
        assert 0 < told["idle"] < 1
        assert all(torch.equal(value, other[name]) for name, value in state.items())
        found = [value for name, value in state.items() if "running" not in name]
        found += [value for name, value in state.items() if "running" in name]
        # The same sums of at most 16 terms in another order: some tens of roundings of 1.1e-16 a step, and ten steps.
        assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(found, expected, strict=True))


def contender(system: str, how: str = "", ranks: int = 2, shape: str = "D") -> Spread:
    return Spread(shape, system, how, ranks)


def timings() -> Timings:
    whole = contender(RANKS, "all")
    return Timings(
        {
            contender(ONE): [1.0, 2.0, 3.0],
            whole: [1.2, 2.2, 3.0],
            contender(RANKS, AT_ONCE): [1.2, 2.42, 3.6],
            contender(RANKS, "late"): [1.1, 1.1, 1.1],
            contender(DDP): [2.2, 6.6, 9.0],
        },
        dict.fromkeys([contender(ONE), whole, contender(RANKS, AT_ONCE), contender(RANKS, "late")], "")
        | {contender(DDP): "one bucket"},
        {
            whole: {"wait": 0.25, "exchange": 0.125, "idle": 0.375, "exchange_range": [0.1, 0.15]}
            | {"most": 0.2, "most_range": [0.1, 0.3]},
            contender(DDP): {"idle": 0.5},
        },
    )


def test_ratios_and_bars_by_hand():
    one, exchange, most, ddp, at_once, late = processes_tables.ratios(timings(), "D", 2)
    assert one.value == pytest.approx(1.1)
    assert (one.low, one.high) == pytest.approx((1.04, 1.16))  # of 1.2, 1.1, 1
    assert (str(one.bar), one.bar and one.bar.holds(one.value)) == ("at most 1.15", True)
    assert (exchange.value, exchange.low, exchange.high) == (0.125, 0.1, 0.15)
    assert (str(exchange.bar), exchange.bar and exchange.bar.holds(exchange.value)) == ("at most 0.1", False)
    assert (most.value, most.low, most.high, most.bar) == (0.2, 0.1, 0.3, None)
    assert (ddp.value, ddp.bar) == (pytest.approx(3), None)
    assert at_once.value == pytest.approx(1.1)
    assert late.value == pytest.approx(0.5)
    assert [r.what for r in (at_once, late)] == [
        "all ranks, no overlap / all ranks",
        "all ranks, a step late / all ranks",
    ]


def test_bars_are_those_of_two_ranks_and_of_their_shapes():
    bars = {}
    for shape, ranks in (("B", 2), ("C", 2), ("F", 2), ("F", 4)):
        whole = contender(RANKS, "all", ranks, shape)
        told = {whole: {"exchange": 0.05, "exchange_range": [0.0, 0.1], "most": 0.3, "most_range": [0.2, 0.4]}}
        of = Timings({whole: [1.0], contender(ONE, "", ranks, shape): [1.0]}, {}, told)
        bars[shape, ranks] = [str(ratio.bar) for ratio in processes_tables.ratios(of, shape, ranks)]
    assert bars == {
        ("B", 2): ["None", "None", "None"],
        ("C", 2): ["at most 1.15", "None", "None"],
        ("F", 2): ["at most 1.15", "at most 0.1", "None"],
        ("F", 4): ["None", "None", "None"],
    }


def test_rows_say_who_had_ranks_and_who_had_threads():
    rows = {(row["system"], row["sync"]): row for row in processes_tables.rows_of(timings())}
    assert all(set(row) == KEYS for row in rows.values())
    assert [rows[ONE, None][key] for key in ("ranks", "threads", "idle")] == [1, 2, None]
    assert [rows[RANKS, "all"][key] for key in ("ranks", "threads", "wait", "exchange")] == [2, 1, 0.25, 0.125]
    assert [rows[DDP, None][key] for key in ("ranks", "wait", "exchange", "idle")] == [2, None, None, 0.5]
    shown = processes_tables.times("D", timings())
    assert shown.rows[0][:2] == (RANKS, "all ranks, a step late")  # the fastest first
    assert ("ddp", "all", "6,600,000", "3,960,000–8,040,000", "", "", "50.0%") in shown.rows
    assert shown.caption == "ddp: one bucket"


def test_who_takes_part():
    systems = dict.fromkeys((ONE, RANKS, DDP), "1")
    hows = ["all", "group", "none", "late", AT_ONCE]
    found = {count: processes.problems_of(SHAPES["C"], count, systems, hows, "sgd") for count in (1, 2, 4)}
    assert [[c.norm for c in found[count] if c.system == RANKS] for count in (1, 2, 4)] == [
        ["all"],
        ["all", "none", "late", AT_ONCE],  # no two groups of at least two
        hows,
    ]
    at_once = found[2][Spread("C", RANKS, AT_ONCE, 2)]
    assert isinstance(at_once, SpreadProblem)
    assert (at_once.sync, at_once.overlap) == ("all", False)
    assert not isinstance(found[2][Spread("C", ONE, "", 2)], SpreadProblem)


@two_cores
@needs_engine
def test_a_run_writes_rows_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")  # compiling takes long: the peer has torch's kernels alone
    rows_path, markdown = tmp_path / "rows.json", tmp_path / "processes.md"
    options = ["--shapes", "A", "--ranks", "2", "--sync", "all,late", "--no-overlap", "--repeats", "2"]
    assert run("processes", *options, "--json", rows_path, "--markdown", markdown) == 0
    rows = {(row["system"], row["sync"]): row for row in json.loads(rows_path.read_text())}
    assert set(rows) == {(ONE, None), (RANKS, "all"), (RANKS, "late"), (RANKS, AT_ONCE), (DDP, None)}
    for row in rows.values():
        assert set(row) == KEYS
        times = [row["p20_us"], row["median_us"], row["p80_us"]]
        assert all(math.isfinite(t) and t > 0 for t in times)
        assert times == sorted(times)
        if row["system"] == RANKS:
            assert 0 <= row["wait"] <= row["idle"] < 1
            assert 0 < row["exchange"] <= row["idle"]
    shown, text = capsys.readouterr().out, markdown.read_text()
    for words in ("A: 64 x [20, 20, 20, 20, 10], 2 ranks", "ranks / one process", "a step late / all ranks"):
        assert words in shown
        assert words in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sync", "some"), ("unknown choice 'some'", "all, group, none, late")),
        (("--ranks", f"{len(usable()) + 1}"), (f"{len(usable()) + 1} threads", f"{len(usable())} cores")),
        (("--peers", "jax"), ("unknown peer 'jax'", "ddp")),
        (("--json", "/no/such/folder/rows.json"), ("make it first",)),
    ],
)
def test_a_mistake_is_one_sentence(options: tuple[str, ...], words: tuple[str, ...], capsys):
    assert run("processes", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith("benchmarks: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
