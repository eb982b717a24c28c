"""The step's peers do the same work as torch eager."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Ten steps of a peer from torch eager's parameters; prints the largest difference to eager's parameters after them. In
# a process of its own, for jax starts threads and compile's stance is global.
SAME_WORK = """
import sys
import numpy as np, torch
from benchmarks.limits import Limits
from benchmarks.problem import Problem
from benchmarks.systems import compiled, eager

def difference(found, net):
    return max(float(abs(a - b.detach().numpy()).max()) for a, b in zip(found, net.parameters(), strict=True))

torch.compiler.set_stance("force_eager")  # the formulas are looked at, not the compiler
for norm in ("batch", "layer", "none"):
    for optimizer in ("sgd", "adam"):
        problem = Problem(16, (4, 8, 6, 3), norm, optimizer, 1)
        batches = eager.make_batches(problem)[:10]
        loop = eager._loop(problem, batches, "foreach")
        start = [p.detach().clone() for p in loop.net.parameters()]
        loop.run(10)
        moved = difference([p.numpy() for p in start], loop.net)
        if sys.argv[1] == "compile":
            peer = compiled.whole(problem, batches)
            peer.run(10)
            found = [p.detach().numpy() for p in peer.net.parameters()]
            buffers = [b.numpy() for n, b in peer.net.named_buffers() if "running" in n]
        else:
            import jax
            from benchmarks.systems import jitted
            layers, running, moments, count = jitted.initial(problem)
            values = iter(start)
            for layer in layers:  # torch's order, and its weights are (out, in)
                for name in ("w", "b", "gamma", "beta"):
                    if name in layer:
                        value = next(values).numpy()
                        layer[name] = value.T if name == "w" else value
            state = layers, running, moments, count
            step = jax.jit(jitted.take_step, static_argnums=0)
            for x, y in batches:
                state = step(problem, state, x.numpy(), y.numpy().astype("int32"))
            found = [np.asarray(layer[name]).T if name == "w" else np.asarray(layer[name])
                     for layer in state[0] for name in ("w", "b", "gamma", "beta") if name in layer]
            buffers = [np.asarray(part) for pair in state[1] for part in pair]
        theirs = [b.numpy() for n, b in loop.net.named_buffers() if "running" in n]
        far = max([float(abs(a - b).max()) for a, b in zip(buffers, theirs, strict=True)], default=0.0)
        print(norm, optimizer, moved, difference(found, loop.net), far)
"""


@pytest.mark.parametrize("peer", ["compile", "jax"])
def test_peers_do_the_same_work_as_torch_eager(peer: str):
    if peer == "jax" and importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SAME_WORK, peer], cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6
    for norm, optimizer, *numbers in lines:
        moved, difference, far = map(float, numbers)
        # Ten steps of about 1e-5 (Adam) and more (SGD); parameters are below 2, so a float32 rounding is 1.2e-7, and a
        # wrong formula would be off by about a step.
        assert moved > 5e-5, (norm, optimizer)
        assert difference < 0.1 * moved, (norm, optimizer)
        assert far < 1e-5, (norm, optimizer)  # statistics of size 1, some ten roundings
