"""The benchmark of layers on a GPU: without one it says so; with the CPU in its place, every system does the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_steps, gpu_tables
from benchmarks.gpu_cases import SHAPES, GpuCase
from benchmarks.problem import Problem
from benchmarks.rounds import Contender, Timings
from benchmarks.shapes import Shape
from benchmarks.systems import on_gpu as steps_on_gpu
from benchmarks.systems.layers import on_gpu
from measuring import run

KEYS = {"shape", "layout", "dtype", "norm", "system", "median_us", "p20_us", "p80_us", "of_copy"}
TINY = {"rows": ((6, 5), "rows"), "last": ((3, 4, 5, 2), "channels_last")}


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of a few numbers, two layers of each, on the CPU."""
    monkeypatch.setattr(gpu_cases, "SHAPES", TINY)
    monkeypatch.setattr(gpu_cases, "MOST", 2)
    monkeypatch.setattr(gpu, "find_device", lambda: "cpu")
    monkeypatch.setattr("benchmarks.gpu_timing.copy_bandwidth", lambda clock, device: 1e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("gpu") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "torch sees no GPU here" in said.err
    assert torch.__version__ in said.err


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("gpu", "--shapes", "64x64") == 2
    assert "unknown shape '64x64'" in capsys.readouterr().err


def test_the_shapes_are_those_of_resnet_50() -> None:
    """Its batch norms by stage, counted in torchvision's: 53 of 12 kinds of output."""
    assert len(SHAPES) == 2 + 2 * 12
    assert SHAPES["256x64x112x112"] == ((256, 64, 112, 112), "channels_last")
    case = GpuCase("65536x64", "float32", "batch+relu", 1)
    assert case.tensor_bytes == 16 << 20
    assert case.least_bytes == 8 * case.tensor_bytes
    assert case.layers == 16
    assert case.memory_bound
    assert not GpuCase("64x512x7x7", "bfloat16", "batch", 1).memory_bound
    assert GpuCase("64x64x56x56", "float32", "batch", 1, planes=True).layout == "channels_first"


@pytest.mark.parametrize("norm", ["batch", "batch+relu", "batch+add+relu"])
@pytest.mark.parametrize("name", TINY)
def test_every_system_does_the_work_of_the_oracle(name: str, norm: str, on_the_cpu: None) -> None:
    case = GpuCase(name, "float32", norm, 1, "cpu")
    with torch.compiler.set_stance("force_eager"):  # the formulas are looked at, not the compiler
        for system in ("wholebatch", "torch", "compile"):
            stack = on_gpu.SYSTEMS[system](case)
            assert len(stack.inputs) == 2
            for i, (z, residual, wanted, dy) in enumerate(
                zip(stack.inputs, stack.residuals, stack.wanted, stack.gradients, strict=True)
            ):
                y = stack.forward(i, z, residual)
                found = [y, *torch.autograd.grad(y, wanted, dy)]
                exact = [tensor.detach().double().requires_grad_() for tensor in wanted]
                dims = [d for d in range(z.dim()) if d != 1]
                wide = (-1, *[1] * (z.dim() - 2))
                mean, var = exact[0].mean(dims, keepdim=True), exact[0].var(dims, correction=0, keepdim=True)
                t = (exact[0] - mean) / (var + 1e-5).sqrt() * exact[-2].view(wide) + exact[-1].view(wide)
                t = t + exact[1] if case.adds else t
                t = t.relu() if case.rises else t
                expected = [t, *torch.autograd.grad(t, exact, dy.double())]
                assert len(found) == len(expected) == (5 if case.adds else 4)
                for a, b in zip(found, expected, strict=True):
                    # Some thirty numbers of size 1, a few dozen roundings of 6e-8 each, times 1 / std < 3.
                    torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5)


def test_a_run_writes_rows_and_tables(on_the_cpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    options = ["--dtypes", "float32", "--no-graphs", "--peers", "torch,sync", "--repeats", "2"]
    files = ["--json", str(rows), "--markdown", str(page)]
    gpu.gpu.main([*options, *files], standalone_mode=False, default_map={"shapes": tuple(TINY)})
    found: list[dict[str, Any]] = json.loads(rows.read_text())
    assert [(row["shape"], row["system"]) for row in found] == [
        (shape, system) for shape in ("6x5", "3x4x5x2") for system in ("wholebatch", "torch")
    ]
    for row in found:
        assert set(row) == KEYS
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        least = {"6x5": 8 * 30 * 4, "3x4x5x2": 8 * 120 * 4}[row["shape"]]
        assert row["of_copy"] == pytest.approx(least / (row["median_us"] / 1e6) / 1e9)
    text = page.read_text()
    assert "sync is left out of rows float32 rows, batch+relu" in text
    assert "bandwidth of a copy: 1 GB/s" in text
    assert "torch / wholebatch" in text
    assert "Times are microseconds" in capsys.readouterr().out


def test_ratios_and_bars() -> None:
    case = GpuCase("256x64x56x56", "float32", "batch+relu", 1)
    timings = Timings()
    least = case.least_bytes / 1e12  # at a terabyte a second
    for system, times in (("wholebatch", 1.25), ("torch", 1.5), ("compile", 2.5)):
        timings.seconds[Contender(str(case), system, case.norm, 1)] = [times * least] * 3
    found = {ratio.what: ratio for ratio in gpu_tables.ratios(case, timings, 1e12, 50 << 20)}
    held = {what: ratio.bar is not None and ratio.bar.holds(round(ratio.value, 9)) for what, ratio in found.items()}
    assert held == {
        "torch / wholebatch": False,
        "compile / wholebatch": True,
        "bytes a second of wholebatch / of a copy": True,
    }
    assert found["bytes a second of wholebatch / of a copy"].value == pytest.approx(0.8)
    cached = gpu_tables.ratios(case, timings, 1e12, 1 << 40)  # all of it in a cache: no bar against a copy
    assert cached[-1].bar is None


@pytest.fixture
def steps_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of a few numbers, bursts as short as they get, on the CPU."""
    monkeypatch.setattr(gpu, "find_device", lambda: "cpu")
    monkeypatch.setattr(gpu, "STEPS", {"A": Shape("A", 8, (5, 6, 6, 3)), "B": Shape("B", 4, (3, 2, 2))})
    monkeypatch.setattr(gpu_steps, "BURST_SECONDS", 0.0)


def test_steps_are_measured_and_written(
    steps_on_the_cpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    options = ["--steps", "A,B", "--peers", "torch", "--repeats", "2", "--json", str(rows), "--markdown", str(page)]
    gpu.gpu.main(options, standalone_mode=False)
    found: list[dict[str, Any]] = json.loads(rows.read_text())
    systems = ["wholebatch", "wholebatch, layer by layer", "wholebatch, no graphs", "torch"]
    assert [(row["shape"], row["system"]) for row in found] == [(s, name) for s in "AB" for name in systems]
    assert all(0 < row["p20_us"] <= row["median_us"] <= row["p80_us"] for row in found)
    text = page.read_text()
    assert "wholebatch: layer by layer: Triton's kernels do not serve torch.float32 on cpu here." in text
    assert text.count("torch / wholebatch") == 2
    assert text.count("at least 3: ") == 1  # of shape A, whether it holds or is missed
    assert "Times are microseconds for one training step" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's compiler, as it is imported
def test_ours_and_the_peers_learn_the_same_task(steps_on_the_cpu: None) -> None:
    """Every system moves its weights, by steps of SGD on the same table: nobody is measured doing nothing."""
    problem = Problem(8, (5, 6, 6, 3), "batch", "sgd", 1)
    with torch.compiler.set_stance("force_eager"):  # what is called is looked at, not the compiler
        for name, make in {**steps_on_gpu.OURS, **steps_on_gpu.PEERS}.items():
            trainer: Any = make(problem, "cpu")
            net = trainer.engine.model if name in steps_on_gpu.OURS else trainer.net
            before = [parameter.detach().clone() for parameter in net.parameters()]
            assert trainer.run(16) > 0
            moved = [float((a - b.detach()).abs().max()) for a, b in zip(before, net.parameters(), strict=True)]
            assert min(moved) > 0, name
            assert max(moved) < 0.1, name  # 16 steps at a rate of 1e-3
