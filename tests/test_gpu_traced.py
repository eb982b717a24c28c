"""The operator that compilers see, on a GPU: every output lies there, and a count of a mask is fetched by nobody."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.programs import run_alone
from wholebatch.traced import batch_norm_backward_op, batch_norm_op

pytest.importorskip("triton", reason="Triton is missing here: pip install 'wholebatch[gpu]'")


@pytest.mark.parametrize("masked", [False, True])
def test_a_compiler_sees_nothing_on_the_cpu(masked: bool) -> None:
    """A scalar of the CPU among the outputs would keep torch.compile from replaying a GPU's graphs."""
    with FakeTensorMode():
        z = torch.empty(8, 3, device="cuda", dtype=torch.bfloat16)
        vector = torch.empty(3, device="cuda")
        mask = torch.empty(8, 1, device="cuda", dtype=torch.bool) if masked else None
        found = batch_norm_op(z, vector, vector, None, mask, 1e-5, 0.0, "", "layer")
        y, mean, _, rstd, count = found
        back = batch_norm_backward_op(y, z, vector, vector, None, mask, mean, rstd, count, 0.0, "", "layer")
        assert {tensor.device.type for tensor in (*found, *back)} == {"cuda"}
        assert (count.shape, count.dtype) == ((), torch.float64)


PROGRAM = """
import sys
sys.path[:0] = ["tests", "."]
import torch
import tests.gpu_kernels
from torch.utils._python_dispatch import TorchDispatchMode
import wholebatch
from wholebatch.kernels.batch_norm import choose_kernel
from wholebatch.kernels.gpu.kernel import Triton

torch.manual_seed(0)
z, g = torch.randn(12, 5), torch.randn(12, 5)
assert isinstance(choose_kernel(z, None), Triton)
fetched = []
count = torch.Tensor.__float__
torch.Tensor.__float__ = lambda self: fetched.append(tuple(self.shape)) or count(self)
for mask in (None, torch.arange(12) % 3 > 0):
    outcomes = []
    for compiled in (False, True):
        torch.compiler.reset()
        layer = wholebatch.BatchNorm1d(5, activation="relu")
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        x = z.clone().requires_grad_()
        fetched.clear()
        y = call(x, mask=mask)
        y.backward(g)
        assert not fetched, fetched
        outcomes.append([y.detach(), x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var])
    for one, other in zip(*outcomes):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    print("SAME", mask is None)
"""


def test_the_compiled_layer_does_what_the_layer_does_and_fetches_nothing() -> None:
    """Of twelve rows and five channels in float32: the two round in other places, some units of the last place."""
    done = run_alone(PROGRAM, TRITON_INTERPRET="1", WHOLEBATCH_KERNELS="gpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["SAME True", "SAME False"]
