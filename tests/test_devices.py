"""A GPU that is asked for and not there, and GPU kernels without what they need: one sentence each, with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import wholebatch
from tests.programs import run_alone
from wholebatch.devices import check_device

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@without_gpu
@pytest.mark.parametrize(
    "make",
    [
        lambda device: wholebatch.BatchNorm1d(8, device=device),
        lambda device: wholebatch.BatchNorm2d(8, device=device),
        lambda device: wholebatch.LazyBatchNorm1d(device=device),
        lambda device: wholebatch.FeedForward(5, (8,), 2, device=device),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_a_gpu_that_is_not_there_is_named_with_a_remedy(make: Callable[[Any], object], device: Any) -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda.*torch sees no GPU here.*choose 'cpu'"):
        make(device)


def test_other_devices_are_not_looked_at() -> None:
    for device in (None, "cpu", "meta", torch.device("cpu")):
        check_device(device)
    assert wholebatch.BatchNorm1d(8, device="meta").weight.is_meta


MISSING = """
import sys, warnings
sys.modules["triton"] = None  # importing it now fails as where it was never installed
import torch
from wholebatch.kernels import gpu
from wholebatch.kernels.batch_norm import choose_kernel
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        print(gpu.triton_available(say=True))
for warning in said:
    print(warning.category.__name__, warning.message)
try:
    print(type(choose_kernel(torch.zeros(4, 3), None)).__name__)
except ValueError as error:
    print(error)
"""


def test_without_triton_it_is_said_once() -> None:
    done = run_alone(MISSING)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["False"] * 3
    assert lines[3].startswith("RuntimeWarning batch norm on the GPU runs on torch's own operations, which is slower")
    assert "pip install 'wholebatch[gpu]'" in lines[3]
    assert lines[4] in ("Steps", "Reference")  # the CPU's do not depend on it
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("program", "interpret"),
    [(MISSING, "1"), ("\n" + MISSING.replace('sys.modules["triton"] = None', "pass"), "0")],
    ids=["no Triton", "not interpreted"],
)
def test_kernels_of_the_gpu_on_the_cpu_are_for_tests(program: str, interpret: str) -> None:
    done = run_alone(program, WHOLEBATCH_KERNELS="gpu", TRITON_INTERPRET=interpret)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("WHOLEBATCH_KERNELS=gpu runs the GPU's kernels on the CPU")


IMPORTED = """
import sys
import torch, wholebatch
layer = wholebatch.BatchNorm1d(3)
layer(torch.randn(4, 3)).sum().backward()
print("triton" in sys.modules)
"""


def test_triton_is_not_imported_for_the_cpu() -> None:
    done = run_alone(IMPORTED)
    assert done.stdout == "False\n", done.stderr
