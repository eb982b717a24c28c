"""The products with batch norm in them, compiled for cards that are not here: see ``test_gpu_compiling.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.programs import run_alone

pytest.importorskip("triton", reason="Triton is missing here: pip install 'wholebatch[gpu]'")

COMPILE = """
import json, os, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

capability, dtype = json.loads(sys.argv[1])

class Card:
    def get_current_target(self): return GPUTarget("cuda", capability, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_active_torch_device(self): return torch.device("cpu")

driver.set_active(Card())
from wholebatch.kernels.gpu import blocks, launching, merging

def launch(kernel, grid, warps, on, *arguments, contracted=False):
    if not contracted:  # of batch norm's own, which test_gpu_compiling.py looks at
        return
    made = kernel.warmup(*arguments, grid=grid, **launching._options(warps, contracted=contracted))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {"name": kernel.fn.__name__, "ptx": made.asm["ptx"], "usage": usage, "shared": made.metadata.shared}
    print(json.dumps(found))

blocks.launch = merging.launch = launch
x, w = (torch.empty(shape, dtype=getattr(torch, dtype)) for shape in ((4096, 256), (256, 256)))
vector = torch.ones(256)
below = blocks.Normalised(x, torch.ones(3, 256), vector, vector, 0.0)
z, statistics = blocks.multiply_for_norm(below, w, 1e-5, vector, vector.clone(), 0.1)
above = blocks.Derived(torch.empty_like(z), blocks.Normalised(z, statistics, vector, vector, 0.0), vector, vector)
blocks.multiply_back(above, w, below, vector, vector)
blocks.multiply_across(above, below, w)
"""
NAMES = ["multiply", "multiply_back", "multiply_across"]


@pytest.mark.parametrize(("capability", "dtype"), [(90, "float32"), (80, "bfloat16")])
def test_products_compile_for_cards(tmp_path: Path, capability: int, dtype: str) -> None:
    """No atomic operations, nothing spilled, memory read 16 bytes at a time; float32 is never multiplied as TF32."""
    done = run_alone(COMPILE, json.dumps([capability, dtype]), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["name"] for each in found] == NAMES
    for each in found:
        name, ptx = each["name"], each["ptx"]
        assert f".target sm_{capability}" in ptx
        assert not re.search(r"\b(atom|red)\.", ptx), name
        spilled = re.search(r"LOCAL:(\d+)", each["usage"])
        assert spilled is not None
        assert int(spilled[1]) == 0, each["usage"]
        assert each["shared"] <= 65536, name  # what any card of compute capability 7.5 has for a program
        assert "tf32" not in ptx, name
        assert re.search(r"ld\.global\S*\.v4\.b32|cp\.async\.cg", ptx), name
        wanted = r"fma\.rn\.f32" if dtype == "float32" else r"mma\S*\.bf16|wgmma\S*\.bf16"
        assert re.search(wanted, ptx), name
