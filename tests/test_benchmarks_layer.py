"""The benchmark of single layers: every system does the same work, the floor moves the bytes it says. No speed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import layer, layer_cases, layer_tables
from benchmarks.cores import usable
from benchmarks.crew import Crew
from benchmarks.layer_cases import NORMS, SHAPES, Case
from benchmarks.limits import Limits
from benchmarks.rounds import Contender, Timings
from benchmarks.systems import LAYER_PEERS, LAYER_SYSTEMS, TUNED
from benchmarks.systems.layers import compiled, eager, ours, sweeps
from benchmarks.systems.layers.stack import Stack
from measuring import run

ROOT = Path(__file__).parent.parent
KEYS = {"shape", "layout", "dtype", "system", "norm", "threads", "median_us", "p20_us", "p80_us"}
TINY = {
    "rows": ((6, 5), "rows"),
    "planes": ((3, 4, 5, 2), "channels_first"),
    "last": ((3, 4, 5, 2), "channels_last"),
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of a few numbers, two layers of each."""
    monkeypatch.setattr(layer_cases, "SHAPES", TINY)
    monkeypatch.setattr(layer_cases, "MOST", 2)


def test_counts_by_hand():
    f32, f16 = (Case("65536x64", dtype, "batch+relu", 1) for dtype in ("float32", "bfloat16"))
    assert f32.tensor_bytes == 2 * f16.tensor_bytes == 65536 * 64 * 4
    assert f32.least_bytes == 8 * f32.tensor_bytes
    assert replace(f32, norm="batch+add+relu").least_bytes == 11 * f32.tensor_bytes
    assert (f32.layers, f16.layers) == (4, 8)  # of four tensors of 16 MiB each; of 8 MiB
    assert [Case(name, "float32", "batch", 1).layers for name in SHAPES] == [32, 16, 4, 2, 2, 10]
    small = [
        (name, dtype)
        for name in SHAPES
        for dtype in layer_cases.DTYPES
        if not Case(name, dtype, "batch", 1).memory_bound
    ]
    assert small == [("64x20", "float32"), ("64x20", "bfloat16")]


def oracle(z: Any, residual: Any, weight: Any, bias: Any, case: Case) -> Any:
    """The layer in float64, by the textbook."""
    dims = [d for d in range(z.dim()) if d != 1]
    wide = (-1, *[1] * (z.dim() - 2))
    mean, var = z.mean(dims, keepdim=True), z.var(dims, correction=0, keepdim=True)
    y = (z - mean) / (var + 1e-5).sqrt() * weight.view(wide) + bias.view(wide)
    y = y if residual is None else y + residual
    return y.relu() if case.rises else y


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("system", ["eager", "eager in place", "ours", "compiled"])
def test_every_system_does_the_work_of_the_oracle(system: str, name: str, norm: str, tiny: None):
    case = Case(name, "float32", norm, 1)
    stacks = {
        "eager": lambda: eager.stack_of(case, False),
        "eager in place": lambda: eager.stack_of(case, case.rises),
        "ours": lambda: ours.make(case),
        "compiled": lambda: compiled.make(case),
    }
    with torch.compiler.set_stance("force_eager"):  # the formulas are looked at, not the compiler
        stack = stacks[system]()
        assert isinstance(stack, Stack)
        assert len(stack.inputs) == 2
        for i, (z, residual, wanted, dy) in enumerate(
            zip(stack.inputs, stack.residuals, stack.wanted, stack.gradients, strict=True)
        ):
            y = stack.forward(i, z, residual)
            found = [y, *torch.autograd.grad(y, wanted, dy)]
            exact = [tensor.detach().double().requires_grad_() for tensor in wanted]
            t = oracle(exact[0], exact[1] if case.adds else None, *exact[-2:], case)
            expected = [t, *torch.autograd.grad(t, exact, dy.double())]
            assert len(found) == len(expected) == (5 if case.adds else 4)
            for a, b in zip(found, expected, strict=True):
                # Some thirty numbers of size 1, a few dozen roundings of 6e-8 each, times 1 / std < 3.
                torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5)
            form = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
            assert all(tensor.is_contiguous(memory_format=form) for tensor in (z, dy, *found[:2]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [eager.make, ours.make])
def test_a_step_moves_the_running_statistics_of_every_layer(make: Any, norm: str, tiny: None, monkeypatch: Any):
    kept: list[torch.nn.Module] = []
    real = torch.nn.BatchNorm1d.__init__

    def keep(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        kept.append(self)

    monkeypatch.setattr(torch.nn.BatchNorm1d, "__init__", keep)
    stack = make(Case("rows", "float32", norm, 1))
    stack.run(1)
    assert len(kept) in (2, 4)  # of both variants of eager, which were tried
    for each in kept:
        assert (each.running_mean != 0).all()
        assert (each.running_var != 1).all()
        assert torch.isfinite(each.running_var).all()


class Traffic(TorchDispatchMode):
    """Counts the bytes that tensors have that operations read and make."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in (*args, made):
            if isinstance(tensor, torch.Tensor) and tensor.dim():
                self.bytes += tensor.nbytes
        return made


@pytest.mark.parametrize("dtype", layer_cases.DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TINY)
def test_the_floor_moves_the_bytes_that_it_says(name: str, norm: str, dtype: str, tiny: None):
    case = Case(name, dtype, norm, 1)
    floor = sweeps.make(case)
    with Traffic() as traffic:
        floor.run(3)
    assert traffic.bytes == 3 * case.layers * case.least_bytes


def test_memory_seen_as_float32_is_finite_and_normal():
    case = Case("4096x256", "bfloat16", "batch+add+relu", 1)
    floor = sweeps.Sweeps(replace(case, name="64x20"))
    for tensor in (*floor.inputs, *floor.gradients, *floor.residuals):
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()
        assert (tensor.abs() > torch.finfo(torch.float32).tiny).all()


def test_ratios_and_bars_by_hand():
    case = Case("4096x256", "float32", "batch+relu", 1)

    def contender(system: str, threads: int = 1) -> Contender:
        return layer_tables.contender_of(replace(case, threads=threads), system)

    seconds = {
        contender("wholebatch"): [2.0],
        contender("wholebatch", 2): [1.0],
        contender("torch"): [5.0],
        contender("torch", 2): [3.0],
        contender("compile-default"): [2.5],
        contender("sweeps", 2): [0.9],
        contender("wholebatch-tuned"): [1.0],
        contender("tuned"): [1.2],
        contender("compile"): [4.0],
        contender("sweeps-tuned"): [0.7],
    }
    limits = Limits(bandwidth={1: case.least_bytes / 0.5, 2: case.least_bytes / 0.4})
    found = {r.what: r for r in layer_tables.ratios(case, Timings(seconds), limits)}
    told = {what: (r.value, r.bar and (str(r.bar), r.bar.holds(r.value))) for what, r in found.items()}
    assert told == {
        "torch (T=2) / wholebatch (T=2)": (3.0, ("at least 2", True)),
        "best peer, compile-default (T=1) / wholebatch (T=2)": (2.5, None),
        "best peer, tuned (T=1) / wholebatch-tuned (T=1)": (1.2, ("at least 1.3", False)),
        "wholebatch (T=2) / sweeps (T=2)": (pytest.approx(1 / 0.9), ("at most 1.25", True)),
        "wholebatch-tuned (T=1) / sweeps-tuned (T=1)": (pytest.approx(1 / 0.7), ("at most 1.25", False)),
        "wholebatch (T=2) / floor at the triad's bandwidth (T=2)": (pytest.approx(2.5), ("at most 1.25", False)),
        "wholebatch-tuned (T=1) / floor at the triad's bandwidth (T=1)": (pytest.approx(2.0), ("at most 1.25", False)),
    }
    without = layer_tables.ratios(replace(case, norm="batch"), Timings(seconds), limits)
    assert len(without) == len(found)
    assert all(r.bar is None for r in without)
    small = layer_tables.ratios(replace(case, name="64x20"), Timings(seconds), limits)
    assert [(r.value, str(r.bar)) for r in small] == [(3.0, "at least 1"), (2.5, "None"), (1.2, "None")]
    sheet = layer_tables.times(case, Timings(seconds, dict.fromkeys(seconds, "")), limits)
    lines = {row[:2]: row[4:] for row in sheet.rows}
    assert lines["wholebatch", "2"] == ("1.11", "2.50")
    assert lines["torch", "1"] == ("", "10.00")  # no sweeps on as many threads
    assert lines["tuned", "1"] == ("1.71", "2.40")


def test_small_tensors_come_first():
    """Freeing a large one teaches the default allocator to keep smaller ones, which it would not in a smaller net."""
    cases = layer._cases(tuple(SHAPES), tuple(layer_cases.DTYPES), NORMS)
    assert len(cases) == len(SHAPES) * 2 * 3
    sizes = [case.tensor_bytes for case in cases]
    assert sizes == sorted(sizes)


def _environment(pid: int) -> str:
    """Of a process that was started just now: Linux fills it in a moment after the program has replaced its starter."""
    file = Path(f"/proc/{pid}/environ")
    while not (found := file.read_text()):
        time.sleep(0.01)
    return found


def test_only_tuned_processes_have_a_tuned_allocator(monkeypatch: pytest.MonkeyPatch):
    for name in TUNED:
        monkeypatch.setenv(name, "123456789")  # what a person set must not reach "as a person gets it"
    with Crew(usable()[:1], LAYER_SYSTEMS) as crew:
        for system, expected in (("torch", {}), ("tuned", TUNED), ("wholebatch-tuned", TUNED), ("sweeps", {})):
            worker = crew.start(system, 1)
            lines = _environment(worker.process.pid).split("\0")
            found = dict(line.split("=", 1) for line in lines if line.startswith("MALLOC_"))
            assert found == expected, system


def test_a_run_writes_rows_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--shapes", "64x20", "--dtypes", "float32", "--norms", "batch+relu", "--threads", 1, "--repeats", 2]
    written = ["--json", tmp_path / "rows.json", "--markdown", tmp_path / "layer.md"]
    assert run("layer", *options, "--peers", "torch", *written) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["system"] for row in rows} == {"wholebatch", "wholebatch-tuned", "torch", "sweeps", "sweeps-tuned"}
    assert len(rows) == 5
    for row in rows:
        assert set(row) == KEYS
        assert (row["shape"], row["layout"], row["dtype"]) == ("64x20", "rows", "float32")
        assert (row["norm"], row["threads"]) == ("batch+relu", 1)
        times = [row["p20_us"], row["median_us"], row["p80_us"]]
        assert all(math.isfinite(t) and t > 0 for t in times)
        assert times == sorted(times)
    shown, text = capsys.readouterr().out, (tmp_path / "layer.md").read_text()
    for words in ("64x20 float32, batch+relu", "at least 1", "instruction set", "memory bandwidth"):
        assert words in shown
        assert words in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shapes", "A"), ("unknown shape 'A'", ", ".join(SHAPES))),
        (("--dtypes", "float16"), ("unknown dtype 'float16'", "float32, bfloat16")),
        (("--peers", "jax"), ("unknown peer 'jax'", ", ".join(LAYER_PEERS), "none alone")),
        (("--norms", "layer"), ("unknown norm 'layer'", ", ".join(NORMS))),
    ],
)
def test_a_mistake_is_one_sentence_that_names_what_is_known(options: Any, words: Any, capsys: Any):
    assert run("layer", *options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
