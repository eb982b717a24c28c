"""The house itself: it stands without a compiler, its floors look only down, its version is written once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import wholebatch

ROOT = Path(__file__).parent.parent

WITHOUT_COMPILED_PART = """
import sys, warnings
sys.modules["wholebatch._native"] = None  # importing it now fails as where it was never built
import numpy as np
import wholebatch
from wholebatch.kernels import instruction_set, native_available

rng = np.random.default_rng(0)
x = rng.standard_normal((64, 5)).astype("float32")
y = (x[:, 0] > 0).astype("int64")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for seed in range(3):
        net = wholebatch.FeedForward(5, (8,), 2)
        optimizer = wholebatch.Optimizer(learning_rate=0.05)
        history = net.fit(x, y, optimizer=optimizer, training=wholebatch.Training(epochs=30, batch_size=16, seed=seed))
assert history.epochs[-1]["loss"] < 0.5 * history.epochs[0]["loss"], history.epochs
assert not native_available() and instruction_set() == "none"
try:
    net.fit(x, y, engine="native")
except ValueError as error:
    print("REFUSED", error)
for warning in said:
    print("SAID", warning.category.__name__, warning.filename, warning.message)
"""


def test_without_the_compiled_part_it_trains_on_torch_and_says_so_once():
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILED_PART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.findall("^SAID (.*)", done.stdout, re.MULTILINE)
    assert len(said) == 1, done.stdout
    assert said[0].startswith("RuntimeWarning")
    assert "torch reference, which is slower" in said[0]
    assert "Install a C++ compiler" in said[0]
    refused = re.findall("^REFUSED (.*)", done.stdout, re.MULTILINE)
    assert len(refused) == 1
    assert "install a C++ compiler" in refused[0]
    assert "engine='reference'" in refused[0]


def test_the_version_is_written_in_one_place():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert wholebatch.__version__ == version
    sources = [ROOT / "CMakeLists.txt", *(ROOT / "src").rglob("*.py"), *(ROOT / "native").iterdir()]
    assert len(sources) > 20
    assert [str(path) for path in sources if f'"{version}"' in path.read_text()] == []


# The finder of an editable installation comes before sys.path, and would find the tree in place of the copy.
LINT_COPY = """
import importlib.util, os, sys
sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
sys.path.insert(0, "src")
assert importlib.util.find_spec("wholebatch").origin == os.path.abspath("src/wholebatch/__init__.py")
from importlinter.cli import lint_imports_command
lint_imports_command(["--no-cache"])
"""
LOOKING_UP = {
    "moments": "kernels",
    "kernels/native": "feedforward",
    "feedforward/settings": "sklearn",
    "sklearn/__init__": "tables",
    "tables/__init__": "runs",
    "runs/__init__": "commands",
}


@pytest.mark.parametrize("broken", [False, True])
def test_a_floor_that_looks_up_breaks_the_contract(tmp_path: Path, broken: bool):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if broken:
        (tmp_path / "src" / "wholebatch" / "commands" / "__init__.py").touch()
        for module, floor in LOOKING_UP.items():
            with (tmp_path / "src" / "wholebatch" / f"{module}.py").open("a") as file:
                file.write(f"\nimport wholebatch.{floor}\n")
    command = [sys.executable, "-c", LINT_COPY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if not broken:
        assert done.returncode == 0, done.stdout + done.stderr
        return
    assert done.returncode == 1, done.stdout + done.stderr
    for module, floor in LOOKING_UP.items():
        package = module.split("/")[0]
        assert f"wholebatch.{package} is not allowed to import wholebatch.{floor}" in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("named", [True, False])
def test_make_says_that_python_is_too_old(tmp_path: Path, named: bool):
    """``named``: by PYTHON=...; otherwise every candidate on the PATH is too old."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", "CMakeLists.txt"):
        (tmp_path / name).touch()
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.10.1\n[ "$1" = -V ]\n')
    old.chmod(0o755)
    make = shutil.which("make")
    assert make is not None
    for tool in ("sh", "date", "rm", "test"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    done = subprocess.run(
        [make, "demo", *([f"PYTHON={old}"] if named else [])],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "wholebatch needs Python 3.11 or newer" in done.stderr
    assert ("Python 3.10.1" in done.stderr) == named
    assert "make PYTHON=/path/to/python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()
