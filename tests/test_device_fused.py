"""The device engine in fused blocks, in Triton's interpreter: in a process of its own, which sends the CPU's tensors
to the GPU's kernels; dropout, where there is some, by a kernel too."""

from __future__ import annotations

import pytest

from tests.programs import run_alone

pytest.importorskip("triton", reason="Triton is missing here: pip install 'wholebatch[gpu]'")

PROGRAM = """
import os, sys, warnings
sys.path[:0] = ["tests", "."]
import numpy as np, pytest, torch
import tests.gpu_kernels
from oracle import Oracle, assert_near, make_data, make_model
from wholebatch import Loss, Optimizer
from wholebatch.feedforward.device.engine import DeviceEngine
from wholebatch.feedforward.engine import NonFiniteLossError

torch.set_num_threads(1)
order, offsets, rates = np.arange(40)[::-1].copy(), np.array([0, 20, 40]), np.full(2, 0.01)
cases = ("leaky_relu", 0.0, "0", 0.3), ("leaky_relu", 0.0, "1", 0.0), ("relu", 1e4, "1", 0.0)
for activation, mean, fused, p in cases:
    os.environ["WHOLEBATCH_FUSED_BLOCKS"] = fused
    loss, optimizer = Loss("cross_entropy", alpha=0.1), Optimizer("adamw", 0.01, eps=0.01)
    model = make_model((6, 17, 9, 3), "batch", "before", activation, dtype=torch.float32, dropout=p)
    data = make_data(model, loss, 40, mean=mean)
    oracle = Oracle(model, loss, optimizer)
    assert oracle.nearest_kink(data) > 1e-4
    engine = DeviceEngine(model, loss, optimizer, device="cpu")
    result = engine.train_epoch(data, order, offsets, rates)
    wanted = oracle.train(data, order, list(offsets), rates)
    assert engine._pass.plan.fused == (fused == "1"), engine._pass.plan
    # 20 rows and 17 columns: sums of 20 products; three layers, two ways, two steps; Adam with eps 0.01 no more.
    assert result.loss == pytest.approx(wanted, rel=1e-5)
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=1e-5, floor=0.0 if mean else 1e-6)
    print("AS FLOAT64", activation, engine._pass.plan.why)
os.environ["WHOLEBATCH_FUSED_BLOCKS"] = "1"
warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, with which the interpreter computes
model.parts()[1].linear.weight.data[2, 1] = float("inf")
engine = DeviceEngine(model, loss, optimizer, device="cpu")
try:
    engine.train_epoch(data, order, offsets, rates)
except NonFiniteLossError as error:
    print("LAYER", error.step, error.layer, engine._pass.plan.fused)
"""


def test_a_net_in_fused_blocks_trains_as_in_float64() -> None:
    done = run_alone(PROGRAM, TRITON_INTERPRET="1", WHOLEBATCH_KERNELS="gpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [
        "AS FLOAT64 leaky_relu WHOLEBATCH_FUSED_BLOCKS is 0",
        "AS FLOAT64 leaky_relu batch norm behind each sum, and Triton serves it",
        "AS FLOAT64 relu batch norm behind each sum, and Triton serves it",
        "LAYER 1 2 True",
    ]
