"""The benchmark of micro-batches: every way does the step that it says, and bytes are counted as told. No speed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import lockstep, lockstep_cases, lockstep_tables
from benchmarks.lockstep_cases import BLOCK, PEERS, SYSTEMS, Case, Net
from benchmarks.rounds import Timings
from benchmarks.storages import Live
from benchmarks.systems.lockstep import Step, make
from measuring import run

NETS: tuple[Net, ...] = ("conv", "mlp")
EXACT = [system for system in SYSTEMS if not system.startswith("plain")]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets of a few numbers."""
    monkeypatch.setattr(lockstep_cases, "SHAPES", {"conv": (2, 4, 4), "mlp": (6,)})
    monkeypatch.setattr(lockstep_cases, "WIDTHS", {"conv": 3, "mlp": 5})
    monkeypatch.setattr(lockstep_cases, "DEPTHS", {"conv": 4, "mlp": 4})


def step_of(net: Net, system: str, parts: int = 4, rows: int = 12) -> Step:
    return make(Case(net, system, rows, parts, 1))


def gradients(step: Step) -> list[torch.Tensor]:
    step.net.double().zero_grad()
    step.x = step.x.double()
    step.step()
    return [parameter.grad.clone() for parameter in step.net.parameters() if parameter.grad is not None]


def oracle(step: Step, parts: int) -> list[torch.Tensor]:
    """Gradients of plain torch, each part normalised by itself."""
    layers: list[nn.Module] = []
    for module in step.net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            layers += [lambda z, n=module: F.relu(F.batch_norm(z, None, None, n.weight, n.bias, True, 0.1, n.eps))]  # type: ignore[list-item, misc]
        elif not isinstance(module, nn.ReLU) and not list(module.children()):
            layers += [module]
    step.net.zero_grad()
    for x, y in zip(step.x.tensor_split(parts), step.y.tensor_split(parts), strict=True):
        for layer in layers:
            x = layer(x)
        (F.cross_entropy(x, y, reduction="sum") / len(step.x)).backward()
    return [parameter.grad.clone() for parameter in step.net.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_way_does_the_step_that_it_says(net: Net, system: str, tiny: None):
    step = step_of(net, system)
    found, expected = gradients(step), oracle(step, 4 if system.startswith("plain") else 1)
    other = oracle(step, 1 if system.startswith("plain") else 4)
    assert len(found) == len(expected) == 3 * 4 + 2
    for a, b in zip(found, expected, strict=True):
        # Some hundred float64 operations on numbers of size 1 and, through four norms of few rows, a hundredfold.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(found[0], other[0], rtol=1e-3)  # the check above can tell the two apart


@pytest.mark.parametrize("system", ["undivided", "checkpoint", "none", "cpu", "recompute"])
def test_a_step_moves_running_statistics_once(system: str, tiny: None):
    step = step_of("mlp", system)
    moved = [module.num_batches_tracked for module in step.net.modules() if hasattr(module, "num_batches_tracked")]
    before = [int(number) for number in moved]
    step.step()
    assert [int(number) for number in moved] == [number + 1 for number in before]


def test_live_bytes_by_hand():
    x = torch.zeros(1000)  # 4000 bytes
    with Live([x]) as live:
        assert live.peak == 4000
        y = x + 1
        z = y.view(10, 100)[2:]  # the same storage
        assert live.peak == 8000
        del y
        w = z * 2  # 800 numbers more
        assert live.peak == 4000 + 4000 + 3200
        del z, w
        y = x * 3
    assert live.peak == 11200
    with Live() as live:
        y.untyped_storage().resize_(0)  # emptied, as a part that waits
        y.size()
        u = x + x
        assert live.peak == 8000
        other = torch.ones(500)
        other.data_ptr()
        assert live.peak == 10000
    assert u.sum() == 0


def test_live_bytes_know_what_a_kernel_gets_by_address():
    made_before = torch.ones(250)
    with Live() as live:
        made_before.data_ptr()
    assert live.peak == 1000


def test_live_bytes_of_a_net(monkeypatch: pytest.MonkeyPatch):
    """Undivided: each layer keeps z and y, and checkpoints only a block's inputs and what one block needs again."""
    monkeypatch.setattr(lockstep_cases, "SHAPES", {"mlp": (64,)})
    monkeypatch.setattr(lockstep_cases, "WIDTHS", {"mlp": 64})
    monkeypatch.setattr(lockstep_cases, "DEPTHS", {"mlp": 6})
    case = Case("mlp", "undivided", 2048, 1, 1)
    kept, checkpointed = (make(replace(case, system=s)).measure() for s in ("undivided", "checkpoint"))
    # z and y of 6 layers, the input, in backward one gradient or two: and vectors and matrices, under half a unit.
    assert 13 <= kept["live_bytes"] / case.activation_bytes <= 13 + 2.5
    # The input, one input of each block, z and y of the block that is computed again, its gradients.
    most = 1 + 6 / BLOCK + 2 * BLOCK + 2.5
    assert 1 + 2 * BLOCK <= checkpointed["live_bytes"] / case.activation_bytes <= most < 13
    parted = make(replace(case, system="plain", parts=8)).measure()
    assert 1 + 12 / 8 <= parted["live_bytes"] / case.activation_bytes <= 1 + 14.5 / 8 + 0.5
    none = make(replace(case, system="none", parts=8)).measure()
    assert none["live_bytes"] >= 12 * case.activation_bytes  # it saves nothing


def test_ratios_and_bars_by_hand():
    def case(system: str, parts: int = 1, net: Net = "conv", rows: int = 64) -> Case:
        return Case(net, system, rows, parts, 1)

    seconds = {
        case("undivided"): 0.1,
        case("plain", 8): 0.12,
        case("plain-torch", 8): 0.11,
        case("none", 8): 0.132,
        case("plain", 32): 0.15,  # below 5 ms a part
        case("none", 32): 0.3,
        case("cpu", 8): 0.22,
    }
    timings = Timings({lockstep_tables.contender_of(c): [value] for c, value in seconds.items()})
    memory = {
        case("cpu", 8): {"live_bytes": 90, "resident_bytes": None},
        case("recompute", 8): {"live_bytes": 210, "resident_bytes": None},
        case("none", 8): {"live_bytes": 900, "resident_bytes": None},
        case("undivided", rows=8): {"live_bytes": 100, "resident_bytes": None},
    }
    cases = [*seconds, case("recompute", 8)]
    told = {
        r.what: (round(r.value, 6), r.bar and (str(r.bar), r.bar.holds(r.value)))
        for r in lockstep_tables.ratios("conv", cases, timings, memory)
    }
    assert told == {
        "none / plain-torch, 8 parts: time": (1.2, ("at most 1.3", True)),
        "none / undivided, 8 parts: time": (1.32, None),
        "none / plain, 32 parts: time": (2.0, None),
        "none / undivided, 32 parts: time": (3.0, None),
        "cpu / plain-torch, 8 parts: time": (2.0, None),
        "cpu / undivided, 8 parts: time": (2.2, None),
        "cpu, 8 parts / undivided, 8 examples: live bytes": (0.9, ("at most 1", True)),
        "recompute, 8 parts / undivided, 8 examples: live bytes": (2.1, None),
    }
    assert lockstep_tables.ratios("mlp", cases, timings, memory) == []
    alone = {key: value for key, value in memory.items() if key.system != "cpu"}
    (last,) = [r for r in lockstep_tables.ratios("conv", cases, timings, alone) if "bytes" in r.what]
    assert (last.value, last.bar and last.bar.holds(last.value)) == (2.1, False)
    rows = {(row["system"], row["parts"]): row for row in lockstep_tables.rows(cases, timings, memory)}
    assert rows["cpu", 8]["median_us"] == pytest.approx(220_000)
    assert (rows["cpu", 8]["live_bytes"], rows["undivided", 1]["live_bytes"]) == (90, None)
    assert rows["recompute", 8]["median_us"] is None


def test_cases_have_parts_where_they_are_divided():
    cases = lockstep.cases_of("mlp", (2, 4), SYSTEMS, 64, 1)
    assert len(cases) == len(set(cases)) == 4 + 2 * 5
    assert {case.parts for case in cases if case.way in ("undivided", "checkpoint")} == {1}
    assert {(case.system, case.rows) for case in lockstep.smaller(cases)} == {("undivided", 8), ("undivided-torch", 8)}


def test_a_run_writes_rows_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--nets", "mlp", "--rows", 16, "--parts", 2, "--repeats", 2, "--modes", "none", "--peers"]
    written = ["--json", tmp_path / "rows.json", "--markdown", tmp_path / "lockstep.md"]
    assert run("lockstep", *options, "undivided,plain", *written) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert sorted((row["system"], row["parts"], row["rows"]) for row in rows) == [
        ("none", 2, 16),
        ("plain", 2, 16),
        ("undivided", 1, 2),
        ("undivided", 1, 16),
    ]
    for row in rows:
        assert row["live_bytes"] > 0
        assert (row["median_us"] is None) == (row["rows"] == 2)
        times = [row["p20_us"], row["median_us"], row["p80_us"]]
        assert row["rows"] == 2 or (all(math.isfinite(t) and t > 0 for t in times) and times == sorted(times))
    shown, text = capsys.readouterr().out, (tmp_path / "lockstep.md").read_text()
    for words in ("mlp, 16 examples", "none / plain, 2 parts: time", "instruction set", "live"):
        assert words in shown
        assert words in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nets", "A"), ("unknown net 'A'", "conv, mlp")),
        (("--parts", "1"), ("'1' is no number of parts", "at least 2")),
        (("--modes", "disk"), ("unknown mode 'disk'", "none, cpu, recompute")),
        (("--peers", "jax"), ("unknown peer 'jax'", ", ".join(PEERS))),
        (("--rows", "16", "--parts", "32"), ("32", "16 examples", "take fewer")),
    ],
)
def test_a_mistake_is_one_sentence_that_names_what_is_known(options: Any, words: Any, capsys: Any):
    assert run("lockstep", *options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
