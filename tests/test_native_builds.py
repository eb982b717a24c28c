"""Every build of the native kernels gives the reference's numbers, and the sanitizers find nothing in the engine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import run
from wholebatch import kernels

ROOT = Path(__file__).parent.parent
SETS = ("avx512", "avx2", "portable")

# A training run on both engines in float32 and float64; prints the largest differences in units of the dtype's epsilon.
PROGRAM = """
import copy, sys
import numpy as np, torch
from wholebatch import FeedForward, Optimizer, Training, kernels

assert kernels.instruction_set() == sys.argv[1], kernels.instruction_set()
random = np.random.default_rng(0)
x, y = random.normal(size=(301, 37)), random.integers(0, 5, 301)
for dtype in (torch.float64, torch.float32):
    for norm in ("batch", "layer"):
        torch.manual_seed(0)
        net = FeedForward(37, (50, 19), 5, norm=norm, activation="gelu", dropout=0.1, dtype=dtype)
        nets = [net, copy.deepcopy(net)]
        for each, engine in zip(nets, ("native", "reference"), strict=True):
            each.fit(x, y, optimizer=Optimizer("sgd", 0.1), training=Training(2, 100), engine=engine)
        pairs = zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True)
        worst = max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in pairs)
        print(worst / torch.finfo(dtype).eps)
"""

# A net that was trained on two threads goes on in a forked child, which has the memory but not the threads, and ends.
FORK = """
import multiprocessing, sys
import numpy as np, torch
from wholebatch import FeedForward, Training
from wholebatch.feedforward.data import batch_offsets, prepare
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.settings import Loss, Optimizer

net = FeedForward(5, (16,), 3)
loss = Loss("cross_entropy")
random = np.random.default_rng(0)
data = prepare(random.normal(size=(64, 5)), random.integers(0, 3, 64), None, net.architecture, loss, torch.float32)
engine = make_engine(net, loss, Optimizer("sgd", 0.1), n_threads=2, engine="native")

def epoch():
    return engine.train_epoch(data, np.arange(64), batch_offsets(64, 16, net.architecture), np.full(4, 0.1)).loss

epoch()
child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if epoch() > 0 else 1))
child.start()
child.join(60)
print(child.exitcode, epoch() > 0)
"""

native_only = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part is missing here")


@native_only
@pytest.mark.parametrize("name", SETS)
def test_every_build_agrees_with_the_reference(name: str) -> None:
    result = run(PROGRAM, name, WHOLEBATCH_INSTRUCTION_SET=name)
    if "this processor has" in result.stderr:
        pytest.skip(f"this processor has no {name}")
    assert result.returncode == 0, result.stderr
    # 8 updates, each a sum over 100 rows of products of two sums over up to 50 inputs: roundings add like
    # sqrt(100 * 50) per update; gelu's erf is good to 1.5e-7, about one epsilon of float32.
    bound = 8 * (100 * 50) ** 0.5
    worst = [float(line) for line in result.stdout.split()]
    assert len(worst) == 4
    assert max(worst) < bound


@native_only
def test_a_forked_child_goes_on_and_ends() -> None:
    result = run(FORK)
    assert result.stdout.split() == ["0", "True"], result.stderr


@native_only
def test_an_unknown_instruction_set_lists_the_known_ones() -> None:
    program = (
        "from wholebatch import kernels\n"
        "try:\n    kernels.instruction_set()\nexcept ValueError as error:\n    print(error)"
    )
    result = run(program, WHOLEBATCH_INSTRUCTION_SET="sse9")
    assert result.returncode == 0, result.stderr
    for part in ("'sse9'", "known are avx512, avx2 and portable", "this processor has:", "portable"):
        assert part in result.stdout


@pytest.mark.first
@pytest.mark.timeout(1800)  # compiling takes some 250 seconds of one core
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_sanitizers_find_nothing(sanitizers: str) -> None:
    if shutil.which("cmake") is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("building the self-test needs cmake and a C++ compiler")
    build = ROOT / "build" / f"selftest-{sanitizers.replace(',', '-')}"  # kept, so that a second run compiles nothing
    options = [f"-DWHOLEBATCH_SANITIZE={sanitizers}", "-DWHOLEBATCH_WERROR=ON"]
    compile_it = ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)]
    for command in (["cmake", "-S", str(ROOT), "-B", str(build), *options], compile_it):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
    environment = {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    result = subprocess.run([str(build / "selftest")], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("128 nets of the same bits") == 2  # float32 and float64
    assert re.search(r"^products: \d+ within their bounds$", result.stdout, re.MULTILINE)
    assert "batch norm: 198 of 198 runs of the same bits\n" in result.stdout
    if sys.platform == "linux":
        assert "mailbox: 400 meetings of 3 ranks\n" in result.stdout
        assert "spread: 76 of 76 trainings over ranks of the same bits\n" in result.stdout
    assert "ERROR" not in result.stderr
    assert "runtime error" not in result.stderr


@native_only
def test_the_stub_names_what_the_compiled_part_has() -> None:
    tree = ast.parse((ROOT / "src" / "wholebatch" / "_native.pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    promised = {node.name for node in classes["_Network"].body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    module = kernels.native_module()
    for name in ("NetworkFloat32", "NetworkFloat64"):
        assert name in classes
        assert promised == {attribute for attribute in vars(getattr(module, name)) if not attribute.startswith("_")}
