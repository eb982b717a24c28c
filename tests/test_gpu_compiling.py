"""The GPU's kernels compiled for cards that are not here: what the interpreter does not look at.

Triton compiles for any card without one, down to machine code. So it can be read off that every variant compiles, that
memory is read 16 bytes at a time, that there are no atomic operations (sums have one order), no fused multiply-adds
(numbers are torch's), and that nothing spills out of registers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import run_alone

pytest.importorskip("triton", reason="Triton is missing here: pip install 'wholebatch[gpu]'")

COMPILE = """
import json, os, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

capability, dtype, shape, last, masked, slope, whole = json.loads(sys.argv[1])

class Card:
    def get_current_target(self): return GPUTarget("cuda", capability, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_active_torch_device(self): return torch.device("cpu")

driver.set_active(Card())
from wholebatch.kernels.batch_norm import Affine
from wholebatch.kernels.gpu import kernel as kernels, launching, merging
from wholebatch.kernels.gpu.plan import LIMITS, Limits

def launch(kernel, grid, warps, on, *arguments):
    made = kernel.warmup(*arguments, grid=grid, **launching._options(warps))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {"name": kernel.fn.__name__, "ptx": made.asm["ptx"], "usage": usage, "warps": warps}
    found["fused"] = launching._options(warps)["enable_fp_fusion"]
    print(json.dumps(found))

kernels.launch = merging.launch = launch
z = torch.empty(shape, dtype=getattr(torch, dtype))
z = z.to(memory_format=torch.channels_last) if last else z
vector = torch.ones(shape[1])
mask = torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool) if masked else None
affine = Affine(vector, vector.clone(), torch.empty_like(z), slope, mask)
kernel = kernels.Triton(LIMITS if whole else Limits(whole=0))
y, statistics, count = kernel.train(z, 1e-5, affine, vector.clone(), vector.clone(), 0.1)
kernel.train_backward(torch.empty_like(z), z, statistics, affine, count)
"""
WHOLE = ["train_whole", "differentiate_whole"]
SPLIT = ["find_parts", "merge_parts", "normalise", "find_part_sums", "merge_part_sums", "differentiate"]


def compiled(folder: Path, *case: Any) -> Iterator[dict[str, Any]]:
    done = run_alone(COMPILE, json.dumps(case), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        yield json.loads(line)


@pytest.mark.parametrize(
    ("capability", "dtype", "shape", "last", "masked", "slope", "whole"),
    [
        (90, "bfloat16", (8, 64, 56, 56), True, False, 0.0, False),
        (90, "float32", (64, 20), False, True, 0.01, True),
        (80, "float16", (4, 8, 28, 28), False, True, 0.0, False),
    ],
    ids=["channels last", "masked rows", "masked planes"],
)
def test_kernels_compile_for_cards(
    tmp_path: Path, capability: int, dtype: str, shape: Any, last: bool, masked: bool, slope: float, whole: bool
) -> None:
    names = []
    for found in compiled(tmp_path, capability, dtype, shape, last, masked, slope, whole):
        names.append(found["name"])
        ptx = found["ptx"]
        assert f".target sm_{capability}" in ptx
        assert not re.search(r"\b(atom|red)\.", ptx), found["name"]
        assert not found["fused"]
        assert not re.search(r"\bfma\.", ptx), found["name"]
        registers, spilled = re.search(r"REG:(\d+).*LOCAL:(\d+)", found["usage"]).groups()  # type: ignore[union-attr]
        assert int(spilled) == 0, found["usage"]
        assert int(registers) * 32 * found["warps"] <= 65536, found["usage"]  # a program fits a multiprocessor
        if not masked and not found["name"].startswith("merge"):
            assert re.search(r"ld\.global\S*\.v4\.b32", ptx), found["name"]
            assert not re.search(r"ld\.global\S*\.b16", ptx), found["name"]
    assert names == (WHOLE if whole else SPLIT)
